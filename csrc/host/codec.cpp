#include "codec.h"

#include "../cpu/code_block.h"
#include "bind.h"

namespace fusedopt {
namespace {

// Calls f(block) for all blocks, on as many threads as torch has.
template <class F>
void each_block(int64_t blocks, const F& f) {
  without_gil(blocks * kCodeBlock, [&] {
    at::parallel_for(0, blocks, /*grain_size=*/64, [&](int64_t begin, int64_t end) {
      for (int64_t block = begin; block < end; ++block) f(block);
    });
  });
}

std::vector<int64_t> permuted(c10::IntArrayRef sizes, c10::IntArrayRef order) {
  std::vector<int64_t> result;
  for (const int64_t d : order) result.push_back(sizes[d]);
  return result;
}

const at::Tensor& given(const py::object& object, const char* what) {
  if (!THPVariable_Check(object.ptr())) throw py::type_error(std::string(what) + " is not a tensor");
  return unpack(object.ptr());
}

}  // namespace

Coded encode_state(const at::Tensor& value, Dtype code, const at::Tensor& model) {
  if (!equal(value.sizes(), model.sizes())) throw py::value_error("a state in codes has the shape of its param");
  const std::vector<int64_t> order = order_of(*model.unsafeGetTensorImpl());
  const at::Tensor flat =
      value.detach().to(at::TensorOptions(at::kCPU).dtype(at::kFloat)).permute(order).contiguous().view(-1);
  const int64_t numel = flat.numel(), blocks = blocks_of(*flat.unsafeGetTensorImpl());
  const at::ScalarType byte = code == Dtype::i8 || code == Dtype::i4 ? at::kChar : at::kByte;
  const at::Tensor codes = at::empty({blocks, code_bytes(code)}, flat.options().dtype(byte));
  const at::Tensor scales = at::empty({blocks}, flat.options());
  const float* in = flat.const_data_ptr<float>();
  uint32_t* words = static_cast<uint32_t*>(codes.mutable_data_ptr());
  float* scale = scales.mutable_data_ptr<float>();
  with_code(code, [&](auto c) {
    using C = decltype(c);
    each_block(blocks, [=](int64_t block) {
      // The last block is filled up with zeros.
      float numbers[kCodeBlock] = {};
      std::copy_n(in + block * kCodeBlock, std::min<int64_t>(kCodeBlock, numel - block * kCodeBlock), numbers);
      scale[block] = scale_of_block<C>(numbers);
      encode_block<C>(numbers, scale[block], words + block * C::kWords, [](int) { return kNearest; });
    });
  });
  return {codes.to(value.device()), scales.to(value.device())};
}

Coded encode_constant(double value, Dtype code, const at::Tensor& model) {
  const Coded block = encode_state(at::full({kCodeBlock}, value, model.options().dtype(at::kFloat)), code,
                                   at::empty({kCodeBlock}, model.options()));
  const int64_t blocks = blocks_of(*model.unsafeGetTensorImpl());
  return {block.codes.repeat({blocks, 1}), block.scales.repeat({blocks})};
}

at::Tensor decode_state(const at::Tensor& codes, const at::Tensor& scales, const at::Tensor& model,
                        c10::IntArrayRef order) {
  const at::Tensor packed = codes.to(at::kCPU).contiguous().clone(), units = scales.to(at::kCPU).contiguous();
  Dtype code;
  const int64_t blocks = blocks_of(*model.unsafeGetTensorImpl());
  if (!codes_of(*packed.unsafeGetTensorImpl(), *model.unsafeGetTensorImpl(), code) || units.numel() != blocks ||
      units.scalar_type() != at::kFloat)
    throw py::value_error("codes of shape " + shape_of(*packed.unsafeGetTensorImpl()) + " with " +
                          std::to_string(units.numel()) + " scales are not those of a param of shape " +
                          shape_of(*model.unsafeGetTensorImpl()) + "; load the state anew");
  const at::Tensor numbers = at::empty({blocks * kCodeBlock}, units.options());
  const uint32_t* words = static_cast<const uint32_t*>(packed.const_data_ptr());
  const float* scale = units.const_data_ptr<float>();
  float* out = numbers.mutable_data_ptr<float>();
  with_code(code, [&](auto c) {
    using C = decltype(c);
    each_block(blocks, [=](int64_t block) {
      decode_block<C>(words + block * C::kWords, scale[block], out + block * kCodeBlock);
    });
  });
  const at::Tensor made = at::zeros_like(model.detach(), model.options().dtype(at::kFloat).device(codes.device()));
  made.permute(order).copy_(numbers.narrow(0, 0, made.numel()).view(permuted(made.sizes(), order)));
  return made;
}

void bind_codec(py::module_& m) {
  m.attr("CODE_BLOCK") = kCodeBlock;
  m.attr("LEAST_CODED") = kLeastCoded;
  m.def(
      "memory_order",
      [](const py::object& tensor) {
        return py::tuple(py::cast(order_of(*given(tensor, "what has no order").unsafeGetTensorImpl())));
      },
      py::arg("tensor"), "The dimensions of a tensor by descending strides, those that have but one place last.");
  m.def(
      "encode",
      [](const py::object& value, const std::string& code, const py::object& model) {
        const Dtype dtype = Options::storage(code);
        if (!is_coded(dtype)) throw py::value_error("'" + code + "' is no code; use int8, uint8, int4 or uint4");
        const Coded made = encode_state(given(value, "the value"), dtype, given(model, "the model"));
        return py::make_tuple(wrap(made.codes), wrap(made.scales));
      },
      py::arg("value"), py::arg("code"), py::arg("model"),
      "The codes of a tensor, rounded to nearest in the order of the model's memory, and their scales.");
  m.def(
      "decode",
      [](const py::object& codes, const py::object& scales, const py::object& model_object,
         const std::optional<std::vector<int64_t>>& order) {
        const at::Tensor& model = given(model_object, "the model");
        return wrap(decode_state(given(codes, "the first"), given(scales, "the second"), model,
                                 order ? *order : order_of(*model.unsafeGetTensorImpl())));
      },
      py::arg("codes"), py::arg("scales"), py::arg("model"), py::arg("order") = py::none(),
      "What codes and scales stand for, in float32, on their device, with the model's shape and strides; `order` is "
      "that "
      "of its dimensions when the codes were made, if it has come to be another.");
}

}  // namespace fusedopt
