#include "tree_attention.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <memory>
#include <vector>

#include "tree_attention_work.h"

namespace gorgon {
namespace {

constexpr int64_t kQueries = 512;        // of a piece of work at most: their sums stay in a core's cache
constexpr double kAlone = 2e6;           // operations that are done sooner than another thread wakes up
constexpr std::size_t kAlignment = 64;

struct Free {
  void operator()(float* p) const { std::free(p); }
};
using Floats = std::unique_ptr<float, Free>;

Floats allocate(int64_t n) {
  void* p = std::aligned_alloc(kAlignment, round_up(n * static_cast<int64_t>(sizeof(float)), kAlignment));
  if (p == nullptr) throw std::bad_alloc();
  return Floats(static_cast<float*>(p));
}

// A thread's own, kept from call to call.
float* scratch_of_thread(int64_t size) {
  thread_local Floats room;
  thread_local int64_t held = 0;
  if (held < size) room = allocate(size), held = size;
  return room.get();
}

const Kernels& kernels(Path path) {
#if defined(__x86_64__)
  switch (path) {
    case Path::kPortable: return kPortable;
    case Path::kAvx2:
    case Path::kAvxVnni: return kAvx2;
    case Path::kAvx512Vnni:
    case Path::kAmx: return kAvx512;
  }
#endif
  (void)path;
  return kPortable;
}

// Work whose sums are merged by whoever finishes last: [first, first + pieces) of the plan's work.
struct Shared {
  Work whole;
  Floats partial;
  std::atomic<int64_t> left{0};
};

struct Plan {
  std::vector<Row> rows;
  std::vector<std::pair<const Row*, int64_t>> writes;  // rows and key-value heads that are written before all else
  std::vector<Work> work;
  std::vector<Shared*> shared;  // of each piece of work, or null
  std::vector<std::unique_ptr<Shared>> owned;
  int64_t scratch = 0;
};

std::vector<Row> rows_of(const TreeAttention& a) {
  std::vector<Row> rows;
  int64_t first = 0;
  for (int64_t r = 0; r < a.rows; r++) {
    Row row{r, first, a.length[r], a.count[r], 0, true};
    for (int64_t i = 0; i < row.count; i++) {
      row.deepest = std::max(row.deepest, a.depth[first + i]);
      row.chain = row.chain && a.depth[first + i] == i;  // it then sees i nodes and itself: `check` has counted
    }
    first += row.count;
    if (row.count > 0) rows.push_back(row);
  }
  return rows;
}

double operations(const TreeAttention& a, const Work& w) {
  return 4.0 * static_cast<double>(queries(a, w) * a.head_dim * (w.row->length + w.first + w.nodes));
}

// One row and key-value head: `parts` pieces or as many as there is sense in, of the nodes or else of the past.
void cut(const TreeAttention& a, Plan& plan, const Row& row, int64_t kv_head, int64_t parts) {
  const int64_t group = a.heads / a.kv_heads;
  const int64_t most = std::max<int64_t>(1, kQueries / group), least = std::max<int64_t>(1, kLanes / group);
  const int64_t tile = std::clamp((row.count + parts - 1) / parts, std::min(least, most), most);
  const int64_t segments = (row.length + row.deepest) / kSegment + 1, past = row.length / kSegment;
  const int64_t pieces = std::min(parts, past + 1);
  const auto push = [&](const Work& w, Shared* shared) {
    plan.work.push_back(w);
    plan.shared.push_back(shared);
    plan.scratch = std::max(plan.scratch, scratch_size(a, w));
  };
  if (row.count <= least && pieces > 1) {  // few queries, a long past
    auto shared = std::make_unique<Shared>();
    shared->whole = {&row, kv_head, 0, row.count, 0, segments, false, nullptr};
    shared->partial = allocate(segments * partial_size(a, shared->whole));
    shared->whole.partial = shared->partial.get();
    shared->left = pieces;
    for (int64_t i = 0; i < pieces; i++) {
      Work w = shared->whole;
      w.first_segment = i * segments / pieces;
      w.segments = (i + 1) * segments / pieces - w.first_segment;
      push(w, shared.get());
    }
    plan.owned.push_back(std::move(shared));
    plan.writes.emplace_back(&row, kv_head);
    return;
  }
  for (int64_t first = 0; first < row.count; first += tile) {
    const int64_t nodes = std::min(tile, row.count - first);
    push({&row, kv_head, first, nodes, 0, segments, tile >= row.count, nullptr}, nullptr);
  }
  if (tile < row.count) plan.writes.emplace_back(&row, kv_head);
}

Plan plan_of(const TreeAttention& a, int threads) {
  Plan plan;
  plan.rows = rows_of(a);
  const int64_t pairs = static_cast<int64_t>(plan.rows.size()) * a.kv_heads;
  if (pairs == 0) return plan;
  const bool even = pairs >= 4 * threads || pairs % threads == 0;
  const int64_t parts = even ? 1 : (4 * threads + pairs - 1) / pairs;
  for (const Row& row : plan.rows)
    for (int64_t h = 0; h < a.kv_heads; h++) cut(a, plan, row, h, parts);
  return plan;
}

void work_on(const TreeAttention& a, const Kernels& k, const Plan& plan, std::size_t i, float* scratch) {
  k.attend(a, plan.work[i], scratch);
  Shared* shared = plan.shared[i];
  const bool last = shared != nullptr && shared->left.fetch_sub(1, std::memory_order_acq_rel) == 1;
  if (last) k.merge(a, shared->whole, scratch);
}

}  // namespace

void tree_attention(const TreeAttention& a, Path path, const Parallel& pool) {
  const Kernels& k = kernels(path);
  Plan plan = plan_of(a, pool.threads);
  double all = 0;
  for (const Work& w : plan.work) all += operations(a, w);
  const std::size_t total = plan.work.size();
  const std::size_t workers = all < kAlone ? 1 : std::min(total, static_cast<std::size_t>(pool.threads));
  if (workers <= 1) {
    float* scratch = scratch_of_thread(plan.scratch);
    for (const auto& [row, kv_head] : plan.writes) k.write(a, *row, kv_head, scratch);
    for (std::size_t i = 0; i < total; i++) work_on(a, k, plan, i, scratch);
    return;
  }
  if (!plan.writes.empty())
    parallel(pool, plan.writes.size(), [&](std::size_t i) {
      k.write(a, *plan.writes[i].first, plan.writes[i].second, scratch_of_thread(plan.scratch));
    });
  // the longest first; each thread takes the next when it is done with one
  std::vector<std::size_t> order(total);
  for (std::size_t i = 0; i < total; i++) order[i] = i;
  std::stable_sort(order.begin(), order.end(), [&](std::size_t i, std::size_t j) {
    return operations(a, plan.work[i]) > operations(a, plan.work[j]);
  });
  std::atomic<std::size_t> next{0};
  parallel(pool, workers, [&](std::size_t) {
    float* scratch = scratch_of_thread(plan.scratch);
    for (std::size_t i = next++; i < total; i = next++) work_on(a, k, plan, order[i], scratch);
  });
}

void exponential(const float* x, float* y, int64_t n, Path path) { kernels(path).exponential(x, y, n); }

}  // namespace gorgon
