#include <utility>

#include "core/op_list.h"
#include "core/tensor_list.h"
#include "proximal/group_law.h"
#include "proximal/op.h"

// Group proximal operators, and the sums and products over groups that they are made of.

namespace regkern::proximal {
namespace {

// Where groups differ from slices: the group of every slice, and the slices of every group.
struct GroupMap {
  const MaybeTensor &map, &starts, &members;
};

// The tensors of a list and what the kernels are told of them.
class List {
 public:
  List(const Checks& check, const Tensors& like, const std::vector<int64_t>& geometry,
       const GroupMap& groups)
      : check_(check), groups_(groups) {
    check.that(!like.empty(), "at least one tensor", "none");
    dtype_ = check.floating(like[0], "xs");
    check.that(geometry.size() == 3 * like.size(),
               "`geometry` of three numbers for each tensor, " + std::to_string(3 * like.size()),
               std::to_string(geometry.size()));
    for (size_t i = 0; i < like.size(); ++i) {
      if (check.floating(like[i], "xs") != dtype_)
        check.that(false, "`xs` of one dtype", "several");
      if (!on_same_device(like[i], like[0]))
        check.that(false, item_name("xs", i) + " on " + device_name(like[0]), device_name(like[i]));
      GroupRow row{};
      row.outer = geometry[3 * i];
      row.slices = geometry[3 * i + 1];
      row.inner = geometry[3 * i + 2];
      row.numel = like[i].numel();
      // The last of several runs may be shorter.
      const int64_t short_by = row.outer * row.slices * row.inner - row.numel;
      const bool ragged = row.outer == 1 && short_by > 0 && short_by < row.inner;
      if (row.outer < 0 || row.slices < 0 || row.inner < 0 || (short_by != 0 && !ragged))
        check.that(false, "`geometry` of " + std::to_string(row.numel) + " elements",
                   std::to_string(row.outer) + " x " + std::to_string(row.slices) + " x " +
                       std::to_string(row.inner));
      parts_.push_back(rows_.size());
      if (ragged) {
        GroupRow tail = row;
        row.slices -= 1;
        row.numel = row.slices * row.inner;
        tail.slices = 1;
        tail.inner = tail.numel = like[i].numel() - row.numel;
        add(row, 0);
        add(tail, row.numel);
      } else {
        add(row, 0);
      }
    }
    parts_.push_back(rows_.size());
    check_map(like[0]);
  }

  void set_x(const Tensors& xs) { set(xs, "xs", &GroupRow::x); }
  void set_z(const Tensors& zs) { set(zs, "zs", &GroupRow::z); }
  void set_y(const Tensors& ys) {
    for_each(ys, "ys", [&](size_t i) { place_y(i, ys[i].mutable_data_ptr()); });
  }
  // In place: what is not row-major is copied there, and back by copy_back.
  void set_in_place(const Tensors& ys, bool read_them) {
    for_each(ys, "ys", [&](size_t i) {
      place_y(i, written_.row_major(ys[i], read_them));
      if (read_them)
        for (size_t r = parts_[i]; r < parts_[i + 1]; ++r) rows_[r].x = rows_[r].y;
    });
  }
  void copy_back() { written_.copy_back(); }
  void set_l1(const Tensors& l1) {
    for (const Tensor& t : l1)
      check_.that(t.scalar_type() == compute(), "`l1` in the type that is computed in", "another");
    set(l1, "l1", &GroupRow::l1, static_cast<int64_t>(dtype_ == Dtype::float64 ? 8 : 4));
  }
  void set_weights(const std::vector<double>& weights) {
    check_.that(weights.size() + 1 == parts_.size(),
                "`weights` for each tensor, " + std::to_string(parts_.size() - 1),
                std::to_string(weights.size()));
    for (size_t i = 0; i < weights.size(); ++i)
      for (size_t r = parts_[i]; r < parts_[i + 1]; ++r) rows_[r].weight = weights[i];
  }

  const GroupRow* rows() const { return rows_.data(); }
  int64_t count() const { return static_cast<int64_t>(rows_.size()); }
  Dtype dtype() const { return dtype_; }
  ScalarType compute() const { return compute_type(dtype_); }
  int64_t slices() const { return slices_; }
  int64_t partials() const { return partials_; }
  bool empty() const { return empty_; }
  bool mapped() const { return groups_.map.has_value(); }
  int64_t groups() const { return mapped() ? groups_.starts->numel() - 1 : slices_; }
  const int32_t* map() const { return data_or_null<int32_t>(groups_.map); }

  // The sums of the groups of all rows.
  Tensor sums(const Tensor& like, Before before, bool positive, const void* soft,
              Context context) const {
    Tensor slice_sums = zeros_if(empty_, like, slices_, ScalarType::Double);
    Tensor partials = new_tensor(like, {partials_}, ScalarType::Double);
    if (count() > 0)
      backend::group_sums(
          GroupSumsArgs{dtype_, rows(), count(), before, positive, soft,
                        mutable_data<double>(partials), mutable_data<double>(slice_sums)},
          context);
    if (!mapped()) return slice_sums;
    Tensor out = new_tensor(like, {groups()}, ScalarType::Double);
    if (groups() > 0)
      backend::group_fold(
          GroupFoldArgs{const_data<double>(slice_sums), const_data<int64_t>(*groups_.starts),
                        const_data<int32_t>(*groups_.members), groups(), mutable_data<double>(out)},
          context);
    return out;
  }

  static Tensor zeros_if(bool zero, const Tensor& like, int64_t n, ScalarType dtype) {
    Tensor t = new_tensor(like, {n}, dtype);
    if (zero) torch::stable::zero_(t);
    return t;
  }

 private:
  // A run of slices of a tensor, from its element `offset` on. The kernels know no empty ones,
  // whose groups have norm 0.
  void add(GroupRow row, int64_t offset) {
    row.first = first_;
    row.slice = slices_;
    row.weight = 1.0;
    slices_ += row.slices;
    if (row.numel == 0) {
      empty_ = true;
      return;
    }
    if (!in_one_pass(row)) {
      row.partial = partials_;
      partials_ += partials_of(row);
    }
    first_ += list_span(row.numel);
    rows_.push_back(row);
    offsets_.push_back(offset);
  }

  // f(place in the list), after the sizes are checked.
  template <typename F>
  void for_each(const Tensors& list, const char* name, F&& f) {
    if (list.size() + 1 != parts_.size())
      check_.that(
          false, std::string("`") + name + "` of " + std::to_string(parts_.size() - 1) + " tensors",
          std::to_string(list.size()));
    for (size_t i = 0; i < list.size(); ++i) {
      int64_t numel = 0;
      for (size_t r = parts_[i]; r < parts_[i + 1]; ++r) numel += rows_[r].numel;
      if (list[i].numel() != numel)
        check_.that(false, item_name(name, i) + " of " + std::to_string(numel) + " elements",
                    std::to_string(list[i].numel()));
      f(i);
    }
  }
  void set(const Tensors& list, const char* name, const void* GroupRow::* member,
           int64_t size = 0) {
    for_each(list, name, [&](size_t i) {
      if (parts_[i] == parts_[i + 1]) return;
      const auto* data = static_cast<const char*>(read_.row_major(list[i]));
      for (size_t r = parts_[i]; r < parts_[i + 1]; ++r)
        rows_[r].*member = data + offsets_[r] * (size > 0 ? size : element_size());
    });
  }
  void place_y(size_t i, void* memory) {
    auto* data = static_cast<char*>(memory);
    for (size_t r = parts_[i]; r < parts_[i + 1]; ++r)
      rows_[r].y = data + offsets_[r] * element_size();
  }
  int64_t element_size() const {
    return dtype_ == Dtype::float64 ? 8 : dtype_ == Dtype::float32 ? 4 : 2;
  }

  void check_map(const Tensor& like) const {
    if (!mapped()) return;
    const bool all = groups_.starts.has_value() && groups_.members.has_value();
    check_.that(all, "`map` with `starts` and `members`", "it alone");
    check_.same_device(*groups_.map, "map", like);
    check_.same_device(*groups_.starts, "starts", like);
    check_.same_device(*groups_.members, "members", like);
    check_.dtype(*groups_.map, "map", ScalarType::Int, "int32");
    check_.dtype(*groups_.members, "members", ScalarType::Int, "int32");
    check_.dtype(*groups_.starts, "starts", ScalarType::Long, "int64");
    check_.shape(*groups_.map, "map", {slices_});
    check_.that(groups_.map->is_contiguous() && groups_.starts->is_contiguous() &&
                    groups_.members->is_contiguous() && groups_.starts->numel() > 0,
                "contiguous `map`, `starts` and `members`", "others");
  }

  const Checks& check_;
  const GroupMap groups_;
  Dtype dtype_ = Dtype::float32;
  std::vector<GroupRow> rows_;
  std::vector<size_t> parts_;  // the first row of each tensor, and the end
  std::vector<int64_t> offsets_;
  Read read_;
  Written written_;
  int64_t slices_ = 0, partials_ = 0, first_ = 0;
  bool empty_ = false;
};

const double* group_numbers(const Checks& check, const MaybeTensor& t, const char* name,
                            const Tensor& like, int64_t groups) {
  if (!t.has_value()) return nullptr;
  check.same_device(*t, name, like);
  check.dtype(*t, name, ScalarType::Double, "float64");
  check.shape(*t, name, {groups});
  check.that(t->is_contiguous(), std::string("contiguous `") + name + "`", "a strided one");
  return const_data<double>(*t);
}

Before parse_before(const MaybeTensor& soft, const Tensors& l1, bool positive) {
  if (!soft.has_value()) return positive ? Before::positive : Before::nothing;
  return l1.empty() ? Before::soft : Before::weighted;
}

// What a prox is told besides its tensors.
struct ProxArguments {
  const Tensor &step, &lam;
  const std::string& law;
  double shape;
  const MaybeTensor& group_weights;
  const MaybeTensor& soft;
  const Tensors& l1;
  bool positive;
};

struct ProxResult {
  Tensor norms, before, zeros;
};

// The prox of the rows of a list, into their y.
ProxResult run_prox(const Checks& check, List& list, const Tensor& like, const ProxArguments& p,
                    bool want_before, Context context) {
  const ScalarType compute = list.compute();
  const int64_t groups = list.groups();
  const Before before = parse_before(p.soft, p.l1, p.positive);
  if (!p.l1.empty()) list.set_l1(p.l1);
  const void* soft = check_number(check, p.soft, "soft", like, list.dtype());
  ProxResult out{List::zeros_if(list.empty(), like, groups, compute),
                 List::zeros_if(list.empty(), like, want_before ? groups : 0, ScalarType::Double),
                 new_tensor(like, {}, ScalarType::Long)};
  torch::stable::zero_(out.zeros);
  GroupLawArgs law{};
  law.dtype = list.dtype();
  law.law = law_of(check, p.law);
  law.shape = p.shape;
  law.step = check_number(check, p.step, "step", like, list.dtype());
  law.lam = check_number(check, p.lam, "lam", like, list.dtype());
  law.weights = group_numbers(check, p.group_weights, "group_weights", like, groups);
  law.norms = out.norms.mutable_data_ptr();
  law.before = want_before ? mutable_data<double>(out.before) : nullptr;
  law.zeros = mutable_data<int64_t>(out.zeros);

  // In one pass what can be; the sums of the others first. On the GPU a pass is the group soft
  // threshold: other laws need more registers than the elements leave.
  const bool one_pass = !list.mapped() && (kValuesReadable || law.law == Law::soft);
  std::vector<GroupRow> quick, slow;
  for (int64_t i = 0; i < list.count(); ++i) {
    const GroupRow& row = list.rows()[i];
    (one_pass && in_one_pass(row) ? quick : slow).push_back(row);
  }
  if (!quick.empty()) {
    const auto count = static_cast<int64_t>(quick.size());
    law.rows = quick.data();
    law.count = count;
    backend::group_rows(GroupRowsArgs{GroupSumsArgs{list.dtype(), quick.data(), count, before,
                                                    p.positive, soft, nullptr, nullptr},
                                      law},
                        context);
  }
  if (slow.empty()) return out;
  Tensor factors = new_tensor(like, {groups}, compute);
  law.factors = factors.mutable_data_ptr();
  Tensor sums;
  GroupRow all{};
  const auto count = static_cast<int64_t>(slow.size());
  if (list.mapped()) {
    sums = list.sums(like, before, p.positive, soft, context);
    all.slices = groups;
    all.weight = 1.0;
    law.rows = &all;
    law.count = 1;
  } else {
    sums = new_tensor(like, {list.slices()}, ScalarType::Double);
    Tensor partials = new_tensor(like, {list.partials()}, ScalarType::Double);
    backend::group_sums(GroupSumsArgs{list.dtype(), slow.data(), count, before, p.positive, soft,
                                      mutable_data<double>(partials), mutable_data<double>(sums)},
                        context);
    law.rows = slow.data();
    law.count = count;
  }
  law.sums = const_data<double>(sums);
  if (groups > 0) backend::group_law(law, context);
  backend::group_scale(GroupScaleArgs{list.dtype(), slow.data(), count, before, p.positive, soft,
                                      list.map(), true, factors.const_data_ptr(), nullptr},
                       context);
  return out;
}

std::tuple<Tensor, Tensor> group_prox_(Tensors ys, Tensors xs, const Tensor& step,
                                       const Tensor& lam, std::vector<int64_t> geometry,
                                       std::vector<double> weights, std::string law, double shape,
                                       MaybeTensor group_weights, MaybeTensor map,
                                       MaybeTensor starts, MaybeTensor members, MaybeTensor soft,
                                       std::optional<Tensors> l1, bool positive) {
  const Checks check("group_prox_");
  List list(check, ys, geometry, GroupMap{map, starts, members});
  list.set_in_place(ys, xs.empty());
  if (!xs.empty()) list.set_x(xs);
  list.set_weights(weights);
  const OnDevice context(ys[0]);
  const Tensors features = l1.has_value() ? *l1 : Tensors{};
  const ProxResult out =
      run_prox(check, list, ys[0],
               ProxArguments{step, lam, law, shape, group_weights, soft, features, positive}, false,
               context);
  list.copy_back();
  return {out.norms, out.zeros};
}

std::tuple<Tensor, Tensor> group_prox(const Tensor& x, const Tensor& step, const Tensor& lam,
                                      MaybeTensor soft, MaybeTensor l1,
                                      std::vector<int64_t> geometry, double weight, std::string law,
                                      double shape, MaybeTensor group_weights, MaybeTensor map,
                                      MaybeTensor starts, MaybeTensor members, bool positive) {
  const Checks check("group_prox");
  List list(check, {x}, geometry, GroupMap{map, starts, members});
  Tensor y = new_tensor(x, sizes_of(x), x.scalar_type());
  list.set_x({x});
  list.set_y({y});
  list.set_weights({weight});
  Tensors features;
  if (l1.has_value()) features.push_back(*l1);
  const ProxResult out = run_prox(
      check, list, x, ProxArguments{step, lam, law, shape, group_weights, soft, features, positive},
      true, OnDevice(x));
  return {laid_out(y, x), out.before};
}

Tensor group_sums(Tensors xs, Tensors zs, std::vector<int64_t> geometry, MaybeTensor map,
                  MaybeTensor starts, MaybeTensor members) {
  const Checks check("group_sums");
  List list(check, xs, geometry, GroupMap{map, starts, members});
  list.set_x(xs);
  if (!zs.empty()) list.set_z(zs);
  return list.sums(xs[0], Before::nothing, false, nullptr, OnDevice(xs[0]));
}

Tensors group_scale(Tensors xs, const Tensor& a, Tensors zs, MaybeTensor b,
                    std::vector<int64_t> geometry, MaybeTensor map, MaybeTensor starts,
                    MaybeTensor members, bool keep) {
  const Checks check("group_scale");
  List list(check, xs, geometry, GroupMap{map, starts, members});
  list.set_x(xs);
  check.that(zs.empty() == !b.has_value(), "`zs` with `b`", "one of them");
  if (!zs.empty()) list.set_z(zs);
  const auto factors = [&](const Tensor& t, const char* name) {
    check.same_device(t, name, xs[0]);
    check.that(t.scalar_type() == list.compute(),
               std::string("`") + name + "` in the type that is computed in", "another");
    check.shape(t, name, {list.groups()});
    return torch::stable::contiguous(t);
  };
  const Tensor first = factors(a, "a");
  const Tensor second = b.has_value() ? factors(*b, "b") : first;
  Tensors ys;
  for (const Tensor& x : xs) ys.push_back(new_tensor(x, sizes_of(x), x.scalar_type()));
  list.set_y(ys);
  if (list.count() > 0)
    backend::group_scale(GroupScaleArgs{list.dtype(), list.rows(), list.count(), Before::nothing,
                                        false, nullptr, list.map(), keep, first.const_data_ptr(),
                                        b.has_value() ? second.const_data_ptr() : nullptr},
                         OnDevice(xs[0]));
  for (size_t i = 0; i < xs.size(); ++i) ys[i] = laid_out(ys[i], xs[i]);
  return ys;
}

// The same of one tensor: what is differentiated under functorch transforms, which know no lists.
Tensor group_sum(const Tensor& x, MaybeTensor z, std::vector<int64_t> geometry, MaybeTensor map,
                 MaybeTensor starts, MaybeTensor members) {
  return group_sums({x}, z.has_value() ? Tensors{*z} : Tensors{}, geometry, map, starts, members);
}

Tensor group_multiply(const Tensor& x, const Tensor& a, MaybeTensor z, MaybeTensor b,
                      std::vector<int64_t> geometry, MaybeTensor map, MaybeTensor starts,
                      MaybeTensor members, bool keep) {
  return group_scale({x}, a, z.has_value() ? Tensors{*z} : Tensors{}, b, geometry, map, starts,
                     members, keep)[0];
}

void group_scale_(Tensors ys, const Tensor& a, std::vector<int64_t> geometry, MaybeTensor map,
                  MaybeTensor starts, MaybeTensor members) {
  const Checks check("group_scale_");
  List list(check, ys, geometry, GroupMap{map, starts, members});
  list.set_in_place(ys, true);
  check.same_device(a, "a", ys[0]);
  check.that(a.scalar_type() == list.compute() && a.is_contiguous(),
             "contiguous `a` in the type that is computed in", "another");
  check.shape(a, "a", {list.groups()});
  if (list.count() > 0)
    backend::group_scale(
        GroupScaleArgs{list.dtype(), list.rows(), list.count(), Before::nothing, false, nullptr,
                       list.map(), true, a.const_data_ptr(), nullptr},
        OnDevice(ys[0]));
  list.copy_back();
}

// ---- group by group ----

Dtype compute_of(const Checks& check, const Tensor& t, const char* name) {
  const Dtype dtype = check.floating(t, name);
  check.that(dtype == Dtype::float32 || dtype == Dtype::float64,
             std::string("`") + name + "` of dtype float32 or float64", "another");
  return dtype;
}

Tensor group_slopes(const Tensor& norms, const Tensor& step, const Tensor& lam, std::string law,
                    double shape, MaybeTensor weights) {
  const Checks check("group_slopes");
  const int64_t groups = norms.numel();
  const MaybeTensor given = norms;
  const Dtype compute = compute_of(check, step, "step");
  Tensor out = new_tensor(norms, {4, groups}, ScalarType::Double);
  const GroupSlopesArgs args{compute,
                             groups,
                             law_of(check, law),
                             shape,
                             check_number(check, step, "step", norms, compute),
                             check_number(check, lam, "lam", norms, compute),
                             group_numbers(check, weights, "weights", norms, groups),
                             group_numbers(check, given, "norms", norms, groups),
                             mutable_data<double>(out)};
  if (groups > 0) backend::group_slopes(args, OnDevice(norms));
  return out;
}

Tensor group_penalty(const Tensor& norms, const Tensor& lam, std::string law, double shape,
                     MaybeTensor weights) {
  const Checks check("group_penalty");
  const int64_t groups = norms.numel();
  const MaybeTensor given = norms;
  const Dtype compute = compute_of(check, lam, "lam");
  Tensor out = new_tensor(norms, {3, groups}, ScalarType::Double);
  const GroupPenaltyArgs args{compute,
                              groups,
                              law_of(check, law),
                              shape,
                              check_number(check, lam, "lam", norms, compute),
                              group_numbers(check, weights, "weights", norms, groups),
                              group_numbers(check, given, "norms", norms, groups),
                              mutable_data<double>(out)};
  if (groups > 0) backend::group_penalty(args, OnDevice(norms));
  return out;
}

}  // namespace

#if !defined(REGKERN_CUDA)
STABLE_TORCH_LIBRARY_FRAGMENT(REGKERN_LIBRARY, m) {
  m.def(
      "group_prox_(Tensor(a!)[] ys, Tensor[] xs, Tensor step, Tensor lam, int[] geometry, "
      "float[] weights, str law, float shape, Tensor? group_weights=None, Tensor? map=None, "
      "Tensor? starts=None, Tensor? members=None, Tensor? soft=None, Tensor[]? l1=None, "
      "bool positive=False) -> (Tensor norms, Tensor zeros)");
  m.def(
      "group_prox(Tensor x, Tensor step, Tensor lam, Tensor? soft, Tensor? l1, int[] geometry, "
      "float weight, str law, float shape, Tensor? group_weights=None, Tensor? map=None, "
      "Tensor? starts=None, Tensor? members=None, bool positive=False) -> "
      "(Tensor y, Tensor norms)");
  m.def(
      "group_sums(Tensor[] xs, Tensor[] zs, int[] geometry, Tensor? map, "
      "Tensor? starts, Tensor? members) -> Tensor");
  m.def(
      "group_scale(Tensor[] xs, Tensor a, Tensor[] zs, Tensor? b, int[] geometry, "
      "Tensor? map, Tensor? starts, Tensor? members, bool keep) -> Tensor[]");
  m.def(
      "group_sum(Tensor x, Tensor? z, int[] geometry, Tensor? map, Tensor? starts, "
      "Tensor? members) -> Tensor");
  m.def(
      "group_multiply(Tensor x, Tensor a, Tensor? z, Tensor? b, int[] geometry, Tensor? map, "
      "Tensor? starts, Tensor? members, bool keep) -> Tensor");
  m.def(
      "group_scale_(Tensor(a!)[] ys, Tensor a, int[] geometry, Tensor? map=None, "
      "Tensor? starts=None, Tensor? members=None) -> ()");
  m.def(
      "group_slopes(Tensor norms, Tensor step, Tensor lam, str law, float shape, "
      "Tensor? weights=None) -> Tensor");
  m.def(
      "group_penalty(Tensor norms, Tensor lam, str law, float shape, Tensor? weights=None) -> "
      "Tensor");
}
#endif

STABLE_TORCH_LIBRARY_IMPL(REGKERN_LIBRARY, REGKERN_DISPATCH_KEY, m) {
  m.impl("group_prox_", TORCH_BOX(&group_prox_));
  m.impl("group_prox", TORCH_BOX(&group_prox));
  m.impl("group_sums", TORCH_BOX(&group_sums));
  m.impl("group_scale", TORCH_BOX(&group_scale));
  m.impl("group_sum", TORCH_BOX(&group_sum));
  m.impl("group_multiply", TORCH_BOX(&group_multiply));
  m.impl("group_scale_", TORCH_BOX(&group_scale_));
  m.impl("group_slopes", TORCH_BOX(&group_slopes));
  m.impl("group_penalty", TORCH_BOX(&group_penalty));
}

}  // namespace regkern::proximal
