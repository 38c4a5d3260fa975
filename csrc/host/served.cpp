// What keeps the CUDA engine from its devices, as far as somebody has asked; under the GIL.
#include "../cuda/engine.h"
#include "device.h"

namespace fusedopt {
namespace {

constexpr int kDevices = 256;  // a device's index has 8 bits
enum State : char { kUnknown, kServed, kUnserved };
State g_known[kDevices] = {};
std::string g_obstacles[kDevices];
std::string g_untold;  // of which the user has yet to hear

}  // namespace

bool served(int device) {
  State& state = g_known[device];
  if (state == kUnknown) {
    const OnDevice guard(device);
    const char* obstacle = cuda::obstacle(device);
    if (!obstacle) return true;  // the step will meet with it, and say so
    state = *obstacle ? kUnserved : kServed;
    g_obstacles[device] = obstacle;
    if (g_untold.empty()) g_untold = obstacle;
  }
  return state == kServed;
}

std::string obstacle_on(int device) { return served(device) ? "" : g_obstacles[device]; }
std::string take_obstacle() { return std::exchange(g_untold, ""); }

}  // namespace fusedopt
