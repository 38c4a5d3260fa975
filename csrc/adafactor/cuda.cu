// The kernels of Adafactor, as the launcher sees those of rules.
#define FUSEDOPT_NAMESPACE fusedopt_cuda
#include "../cuda/kernel_table.cuh"
#include "kernels.cuh"

namespace FUSEDOPT_NAMESPACE {

class FactoredKernelTable final : public KernelTable<Adafactor, Only<Adafactor>> {
  using Kernel = void (*)(UpdateArguments);

 public:
  FactoredKernelTable() : KernelTable(0) {
    add<float, float>(0);
    add<float, bf16>(1);
    add<float, f16>(2);
    add<double, double>(3);
    add<float, AnyParam, AnyStored>(4);
    add<double, AnyParam, AnyStored>(5);
    update_[kTotal * kFactoredKinds] = factored_total;
    update_[kConclude * kFactoredKinds] = factored_conclude;
  }

  cudaError_t load() const override {
    cudaError_t error = KernelTable::load();
    cudaFuncAttributes attributes;
    for (Kernel kernel : update_)
      if (error == cudaSuccess && kernel) error = cudaFuncGetAttributes(&attributes, kernel);
    return error;
  }
  cudaError_t update(Config& config, int kernel, const UpdateArguments& a) const override {
    return cudaLaunchKernelEx(&config, update_[kernel], a);
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

  Kernel update_[kFactoredPasses * kFactoredKinds] = {};
};

const fusedopt::cuda::RuleKernels& factored_kernels() {
  static const FactoredKernelTable kernels;
  return kernels;
}

}  // namespace FUSEDOPT_NAMESPACE
