// The kernels of Adafactor, as the launcher sees those of rules.
#define FUSEDOPT_NAMESPACE fusedopt_cuda
#include "../cuda/kernel_table.cuh"
#include "kernels.cuh"

namespace FUSEDOPT_NAMESPACE {

class FactoredKernelTable final : public KernelTable<Adafactor, kFactoredPasses * kFactoredKinds> {
 public:
  FactoredKernelTable() {
    add<float, float>(0);
    add<float, bf16>(1);
    add<float, f16>(2);
    add<double, double>(3);
    add<float, AnyStored>(4);
    add<double, AnyStored>(5);
    add<float, WithExtras, AnyStored>(6);
    add<double, WithExtras, AnyStored>(7);
    update_[kTotal * kFactoredKinds] = factored_total;
    update_[kConclude * kFactoredKinds] = factored_conclude;
  }

 private:
  template <class T, class P, class G = P>
  void add(int kind) {
    update_[kMeasure * kFactoredKinds + kind] = factored_measure<T, P, G>;
    update_[kFinish * kFactoredKinds + kind] = factored_finish<T>;
    update_[kTake * kFactoredKinds + kind] = factored_take<T>;
    update_[kLookUp * kFactoredKinds + kind] = factored_look_up<T>;
    update_[kSquare * kFactoredKinds + kind] = factored_square<T, P, G>;
    update_[kFactoredUpdate * kFactoredKinds + kind] = factored_update<T, P, G>;
  }
};

const fusedopt::cuda::RuleKernels& factored_kernels() {
  static const FactoredKernelTable kernels;
  return kernels;
}

}  // namespace FUSEDOPT_NAMESPACE
