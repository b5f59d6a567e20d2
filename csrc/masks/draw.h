#pragma once

#include <cstdint>

#include "core/isa.h"
#include "core/macros.h"
#include "core/random.h"
#include "masks/image.h"

// Parameters of the batch augmentations, drawn where they are used: no host synchronisation.

namespace regkern::masks {

enum class Pairing : int { roll, flip, perm, derange, identity };

struct MixParamsArgs {
  const int64_t* seed;
  int64_t batch, height, width;
  Pairing pairing;
  bool per_batch;
  double cutmix_alpha;      // 0: never
  double mixup_alpha;       // 0: never
  double switch_prob;       // of CutMix, where both are possible
  double p;                 // probability of mixing at all
  bool inside;              // CutMix boxes lie inside the image instead of being clipped
  double min_cut, max_cut;  // with max_cut > 0: each side's share is uniform in between
  bool correct_lam;         // λ from the clipped area
  int64_t* partner;         // (batch)
  int32_t* boxes;           // (batch, 4)
  float* weight;            // (batch), the a of mix.h
  float* lam;               // (batch), share of the own label
  uint64_t* keys;           // (batch), scratch
  int64_t* order;           // (batch), scratch
};

REGKERN_HD void draw_mix(const MixParamsArgs& args, int64_t b) {
  const Seed seed = load_seed(args.seed);
  const uint64_t item = args.per_batch ? 0 : static_cast<uint64_t>(b);
  Draws choice(seed, Stream::choice, item);
  const bool apply = choice.uniform() < args.p;
  const bool cut =
      args.cutmix_alpha > 0.0 && (args.mixup_alpha <= 0.0 || choice.uniform() < args.switch_prob);
  Draws weights(seed, Stream::weight, item);
  const double alpha = cut ? args.cutmix_alpha : args.mixup_alpha;
  double lam = alpha > 0.0 ? draw_beta(weights, alpha, alpha) : 1.0;
  Box box{0, static_cast<int32_t>(args.height), 0, static_cast<int32_t>(args.width)};
  float weight = static_cast<float>(lam);
  if (!apply || alpha <= 0.0) {
    box = Box{0, 0, 0, 0};
    weight = 1.0f;
    lam = 1.0;
  } else if (cut) {
    const auto h = static_cast<double>(args.height), w = static_cast<double>(args.width);
    Draws draws(seed, Stream::box, item);
    int32_t cut_h, cut_w;
    if (args.max_cut > 0.0) {
      const double span = args.max_cut - args.min_cut;
      cut_h = static_cast<int32_t>(h * (args.min_cut + span * draws.uniform()));
      cut_w = static_cast<int32_t>(w * (args.min_cut + span * draws.uniform()));
    } else {
      const double side = regkern::sqrt(1.0 - lam);
      cut_h = static_cast<int32_t>(h * side);
      cut_w = static_cast<int32_t>(w * side);
    }
    const auto height = static_cast<int32_t>(args.height), width = static_cast<int32_t>(args.width);
    if (args.inside || args.max_cut > 0.0) {
      box.y0 = static_cast<int32_t>(draws.below(static_cast<uint32_t>(height - cut_h + 1)));
      box.x0 = static_cast<int32_t>(draws.below(static_cast<uint32_t>(width - cut_w + 1)));
      box.y1 = box.y0 + cut_h;
      box.x1 = box.x0 + cut_w;
    } else {
      const auto cy = static_cast<int32_t>(draws.below(static_cast<uint32_t>(height)));
      const auto cx = static_cast<int32_t>(draws.below(static_cast<uint32_t>(width)));
      box.y0 = cy - cut_h / 2 > 0 ? cy - cut_h / 2 : 0;
      box.y1 = cy + cut_h / 2 < height ? cy + cut_h / 2 : height;
      box.x0 = cx - cut_w / 2 > 0 ? cx - cut_w / 2 : 0;
      box.x1 = cx + cut_w / 2 < width ? cx + cut_w / 2 : width;
    }
    const double area = static_cast<double>(box.y1 - box.y0) * static_cast<double>(box.x1 - box.x0);
    // An empty image keeps λ = 1 of it.
    if (args.correct_lam || args.max_cut > 0.0) lam = area > 0.0 ? 1.0 - area / (h * w) : 1.0;
    weight = 0.0f;
  }
  store_box(box, args.boxes, b);
  args.weight[b] = weight;
  args.lam[b] = static_cast<float>(lam);
}

REGKERN_HD uint64_t pairing_key(const MixParamsArgs& args, int64_t b) {
  const Words words = philox(load_seed(args.seed), Stream::pairing, static_cast<uint64_t>(b));
  return words.w[0] | static_cast<uint64_t>(words.w[1]) << 32;
}

// The partners that need no random order.
REGKERN_HD int64_t fixed_partner(Pairing pairing, int64_t b, int64_t batch) {
  if (pairing == Pairing::roll) return b > 0 ? b - 1 : batch - 1;
  if (pairing == Pairing::flip) return batch - 1 - b;
  return b;
}

// order[r] is the sample of rank r. A permutation takes it as it is; following the ranks around
// gives a random cycle, which leaves nobody with itself.
REGKERN_HD void store_partner(const MixParamsArgs& args, int64_t rank) {
  if (args.pairing == Pairing::perm)
    args.partner[rank] = args.order[rank];
  else
    args.partner[args.order[rank]] = args.order[rank + 1 < args.batch ? rank + 1 : 0];
}

enum class EraseShape : int {
  retry,  // area and aspect until the box fits, ten times at most, else no box
  fit,    // the aspect is clamped so that the box fits
  square  // Cutout: a square of fixed side around a uniform centre, clipped
};

struct EraseParamsArgs {
  const int64_t* seed;
  int64_t batch, height, width;
  int64_t boxes_per_sample, min_boxes;
  bool per_batch;
  double p;
  double min_area, max_area;            // shares of the image, all boxes together
  double log_min_ratio, log_max_ratio;  // height / width
  EraseShape shape;
  int64_t side;    // of a square
  int32_t* boxes;  // (batch, boxes_per_sample, 4)
};

REGKERN_HD void draw_erase(const EraseParamsArgs& args, int64_t b) {
  const Seed seed = load_seed(args.seed);
  const uint64_t item = args.per_batch ? 0 : static_cast<uint64_t>(b);
  Draws choice(seed, Stream::choice, item);
  const bool apply = choice.uniform() < args.p;
  const int64_t most = args.boxes_per_sample;
  const int64_t count =
      args.min_boxes +
      static_cast<int64_t>(choice.below(static_cast<uint32_t>(most - args.min_boxes + 1)));
  const auto h = static_cast<double>(args.height), w = static_cast<double>(args.width);
  const auto height = static_cast<int32_t>(args.height), width = static_cast<int32_t>(args.width);
  for (int64_t k = 0; k < most; ++k) {
    Box box{0, 0, 0, 0};
    if (apply && k < count) {
      Draws draws(seed, Stream::box, item * static_cast<uint64_t>(most) + static_cast<uint64_t>(k));
      if (args.shape == EraseShape::square) {
        const auto half = static_cast<int32_t>(args.side / 2);
        const auto cy = static_cast<int32_t>(draws.below(static_cast<uint32_t>(height)));
        const auto cx = static_cast<int32_t>(draws.below(static_cast<uint32_t>(width)));
        box.y0 = cy - half > 0 ? cy - half : 0;
        box.y1 = cy + half < height ? cy + half : height;
        box.x0 = cx - half > 0 ? cx - half : 0;
        box.x1 = cx + half < width ? cx + half : width;
      } else {
        const int tries = h * w == 0.0 ? 0 : args.shape == EraseShape::retry ? 10 : 1;
        for (int t = 0; t < tries; ++t) {
          const double share = args.min_area + (args.max_area - args.min_area) * draws.uniform();
          const double area = share * h * w / static_cast<double>(count);
          double low = args.log_min_ratio, high = args.log_max_ratio;
          if (args.shape == EraseShape::fit) {
            // h' = √(area · r) ≤ H − 1 and w' = √(area / r) ≤ W − 1.
            const double least =
                regkern::log(area) - 2.0 * regkern::log(w - 1.0 > 0.5 ? w - 1.0 : 0.5);
            const double greatest =
                2.0 * regkern::log(h - 1.0 > 0.5 ? h - 1.0 : 0.5) - regkern::log(area);
            low = low > least ? low : least;
            high = high < greatest ? high : greatest;
            if (low > high) low = high = 0.5 * (least + greatest);
          }
          const double ratio = regkern::exp(low + (high - low) * draws.uniform());
          auto box_h = static_cast<int32_t>(regkern::sqrt(area * ratio) + 0.5);
          auto box_w = static_cast<int32_t>(regkern::sqrt(area / ratio) + 0.5);
          if (args.shape == EraseShape::fit) {
            box_h = box_h < height - 1 ? box_h : height - 1;
            box_w = box_w < width - 1 ? box_w : width - 1;
          }
          if (box_h >= height || box_w >= width || box_h <= 0 || box_w <= 0) continue;
          box.y0 = static_cast<int32_t>(draws.below(static_cast<uint32_t>(height - box_h + 1)));
          box.x0 = static_cast<int32_t>(draws.below(static_cast<uint32_t>(width - box_w + 1)));
          box.y1 = box.y0 + box_h;
          box.x1 = box.x0 + box_w;
          break;
        }
      }
    }
    store_box(box, args.boxes, b * most + k);
  }
}

}  // namespace regkern::masks

namespace regkern {
REGKERN_DECLARE_KERNEL(mix_params, masks::MixParamsArgs)
REGKERN_DECLARE_KERNEL(erase_params, masks::EraseParamsArgs)
}  // namespace regkern
