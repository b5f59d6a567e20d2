// regkern._native: what was built, and what this machine can do. No op goes through it.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <cstdint>
#include <stdexcept>

#include "core/philox.h"
#include "native/probes.h"

namespace py = pybind11;

PYBIND11_MODULE(_native, m) {
  m.doc() = "Build facts and machine probes of regkern.";
  m.attr("version") = REGKERN_VERSION;
  m.attr("compiler") = __VERSION__;
  m.def(
      "philox4x32",
      [](const std::array<uint32_t, 4>& c, const std::array<uint32_t, 2>& k) {
        const regkern::Words words = regkern::philox4x32(c[0], c[1], c[2], c[3], k[0], k[1]);
        return std::array<uint32_t, 4>{words.w[0], words.w[1], words.w[2], words.w[3]};
      },
      py::arg("counter"), py::arg("key"), "The generator of all kernels, for its known answers.");
  m.def(
      "copy_bandwidth",
      [](int64_t bytes, int threads, int repeats) {
        if (bytes < 1 || threads < 1 || repeats < 1)
          throw std::invalid_argument(
              "regkern._native.copy_bandwidth: expected bytes, threads and repeats of at least 1");
        py::gil_scoped_release release;
        return regkern::native::copy_bandwidth(bytes, threads, repeats) * 1e-9;
      },
      py::arg("bytes") = int64_t{1} << 27, py::arg("threads") = 1, py::arg("repeats") = 5,
      "Bandwidth of a copy between warm buffers, read plus written, in GB/s.");
  m.def(
      "fma_rate",
      [] {
        py::gil_scoped_release release;
        return regkern::native::fma_rate() * 1e-9;
      },
      "Multiply-add rate of one thread in float32, in GFLOP/s.");
  m.def(
      "exp_rate",
      [] {
        py::gil_scoped_release release;
        return regkern::native::exp_rate() * 1e-9;
      },
      "Rate of one thread's branch-free float64 exponential, in 1e9/s.");
}
