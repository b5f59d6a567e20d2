#pragma once

#include <cstdint>

#include "masks/mask_apply.h"

namespace regkern::masks {
namespace {

// The mask's elements that those of a tensor belong to, one after the other in memory.
class MaskWalk {
 public:
  MaskWalk(const MaskIndex& index, int64_t e) : index_(index) {
    const int64_t u = e / index.width, group = index.repeat * index.run;
    inner_ = e % index.width;
    s_ = u % index.run;
    r_ = u % group / index.run;
    base_ = u / group * index.run;
  }

  int64_t bit() const { return base_ + s_; }
  // Whether neighbours share an element of the mask, and else have the next one.
  bool shares() const { return index_.width != 1; }
  // Elements before that ends, this one included.
  int64_t left() const { return shares() ? index_.width - inner_ : index_.run - s_; }

  // By no more than is left.
  void advance(int64_t by) {
    if (shares()) {
      inner_ += by;
      if (inner_ < index_.width) return;
      inner_ = 0;
      by = 1;
    }
    s_ += by;
    if (s_ < index_.run) return;
    s_ = 0;
    if (++r_ < index_.repeat) return;
    r_ = 0;
    base_ += index_.run;
  }

 private:
  MaskIndex index_;
  int64_t inner_, s_, r_, base_;
};

}  // namespace
}  // namespace regkern::masks
