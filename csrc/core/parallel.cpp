#include "core/parallel.h"

#include <torch/csrc/stable/ops.h>

namespace regkern {

void run_parallel(int64_t n, int64_t grain, void (*body)(void*, int64_t, int64_t), void* context) {
  torch::stable::parallel_for(0, n, grain,
                              [&](int64_t begin, int64_t end) { body(context, begin, end); });
}

}  // namespace regkern
