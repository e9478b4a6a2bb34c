// Attention over a cache, or over the sequences of this pass alone, by two products with packed matrices.
//
// Keys are packed as a matrix whose outputs are positions, values as one whose inputs are, so scores are a product of the
// queries that share a key with the keys, and what they see a product of the probabilities with the values: the kernels
// of the weights do both. A new position writes one lane of a panel.

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

#include "pass.h"

namespace chinchilla {

namespace {

constexpr int kBlock = 48;     // rows of one product: queries times heads that share a key
constexpr int kPositions = 64;  // a cache's positions come in these: whole steps of values in every format
constexpr int kGroup = 64;      // probabilities that share a scale where values are int8
constexpr int kKeys = 16;       // that are multiplied with distances at once
constexpr int kStep = 64;       // positions whose values are asked for at once
constexpr int kStepsAhead = 2;  // of keys
constexpr int kLeastPart = 64;  // positions that are worth a part of their own

Matrix keys_matrix(Format format, int head_dim, int positions, const std::byte* data) {
    Matrix keys;
    keys.format = format;
    keys.outputs = positions;
    keys.inputs = head_dim;
    keys.data = data;
    return keys;
}

Matrix values_matrix(Format format, int head_dim, int positions, const std::byte* data, std::size_t pitch) {
    Matrix values;
    values.format = format;
    values.outputs = head_dim;
    values.inputs = positions;
    values.data = data;
    values.pitch = pitch;
    values.unscaled = format == Format::int8;
    values.group = values.unscaled ? kGroup : 0;
    return values;
}

// Positions whose values share a word.
int positions_of_word(Format format) { return format == Format::int8 ? 4 : format == Format::bf16 ? 2 : 1; }

void fetch(const std::byte* from, std::size_t bytes) {
    for (std::size_t i = 0; i < bytes; i += 64) __builtin_prefetch(from + i);
}

}  // namespace

std::size_t KeyValues::bytes(Format format, int head_dim, int capacity) {
    const int positions = round_up(capacity, kPositions);
    const Matrix keys = keys_matrix(format, head_dim, positions, nullptr);
    const Matrix values = values_matrix(format, head_dim, positions, nullptr, 0);
    return keys.bytes() + values.bytes() + (format == Format::int8 ? 4 * static_cast<std::size_t>(positions) : 0);
}

KeyValues KeyValues::at(std::byte* memory, Format format, int head_dim, int capacity) {
    const int positions = round_up(capacity, kPositions);
    const Matrix keys = keys_matrix(format, head_dim, positions, nullptr);
    const Matrix values = values_matrix(format, head_dim, positions, nullptr, 0);
    std::byte* behind = memory + keys.bytes();
    float* scales = format == Format::int8 ? reinterpret_cast<float*>(behind + values.bytes()) : nullptr;
    return {memory, behind, values.stride(), scales};
}

KeyValues Pass::key_values(const Operation& op, const Sequence& sequence, int index, int head) const {
    const Format format = program_.cache;
    const int capacity = sequence.cache ? sequence.cache->capacity() : sequence.count;
    std::byte* memory = sequence.cache ? sequence.cache->slot(op.slot) : passing_.as<std::byte>() + passing_at_[index];
    return KeyValues::at(memory + head * KeyValues::bytes(format, op.head_dim, capacity), format, op.head_dim, capacity);
}

// Rows of queries: those of one key head together, [kv_heads][rows][heads that share it].
Input Pass::queries(const Operation& op) const {
    return place(keys_matrix(program_.cache, op.head_dim, 1, nullptr), queries_.as<std::byte>(), rows_ * op.heads);
}

// Rows of keys, [kv_heads][rows], where distances are multiplied with them.
Input Pass::keys(const Operation& op) const {
    return place(keys_matrix(program_.cache, op.head_dim, 1, nullptr), keys_.as<std::byte>(), rows_ * op.kv_heads);
}

// What one block of queries needs at most (attend_block).
void Pass::reserve_attention(const Operation& op, const Job& job) {
    const int shared = op.heads / op.kv_heads, rows = std::max(1, kBlock / shared) * shared;
    long long most = 0;
    for (const Sequence& sequence : job.sequences) most = std::max<long long>(most, sequence.past + sequence.count);
    if (op.window) most = std::min(most, 2LL * op.window + kBlock + kPositions);
    const int width = round_up(static_cast<int>(most), kPositions);
    const Matrix values = values_matrix(program_.cache, op.head_dim, width, nullptr, 0);
    for (Scratch& scratch : scratch_) {
        scratch.scores.reserve_of<float>(static_cast<std::size_t>(rows) * width);
        scratch.probabilities.reserve(rows * (values.row_bytes() + 12 * static_cast<std::size_t>(values.groups())) + 64);
        scratch.tile.reserve_of<float>(static_cast<std::size_t>(rows) * round_up(op.head_dim, kLanes) + 64);
        if (op.on_keys_present || op.on_queries_present) {
            scratch.distances.reserve_of<float>(static_cast<std::size_t>(rows) * program_.distances.count);
        }
    }
}

void Pass::attention(const Operation& op, const Job& job, Member me) {
    const Norm* before = op.placement == Placement::post ? nullptr : &op.norm;
    const Input in = inputs(op.first, before, x_.as(), width_, job.rows, me);
    multiply(op.first, in, job.rows, mid_.as(), wide_, false, me);
    me.meet();
    if (op.whole_norms) norm_heads(op, job.rows, me);
    store(op, job, me);
    me.meet();
    attend(op, job, me);
    me.meet();
    if (op.gated_heads) {
        float* gate = scratch_[me.index].row.as();
        const int count = op.heads * op.head_dim;
        const Share share = me.share(job.rows);
        for (int row = share.begin; row < share.end; ++row) {
            std::copy_n(mid_.as() + row * wide_ + (op.heads + 2 * op.kv_heads) * op.head_dim, count, gate);
            k_.open(gate, seen_.as() + row * wide_, round_up(count, kLanes));
        }
        me.meet();
    }
    join(op, inputs(op.second, nullptr, seen_.as(), wide_, job.rows, me), mid_.as(), job.rows, me);
}

// The norms of queries and of keys that are over all heads together.
void Pass::norm_heads(const Operation& op, int rows, Member me) {
    float* room = scratch_[me.index].row.as();
    const int queries = op.heads * op.head_dim, keys = op.kv_heads * op.head_dim;
    const Share share = me.share(rows);
    for (int row = share.begin; row < share.end; ++row) {
        float* x = mid_.as() + row * wide_;
        // Not in place: a norm writes whole vectors, and keys stand right behind queries.
        const auto norm = [&](const Norm& one, float* part, int size) {
            if (!one.present) return;
            k_.norm(one, part, room, size);
            std::copy_n(room, size, part);
        };
        norm(op.query_norm, x, queries);
        norm(op.key_norm, x + queries, keys);
    }
    me.meet();
}

// Norms and rotates queries and keys, rounds them, and puts keys and values where attention finds them.
void Pass::store(const Operation& op, const Job& job, Member me) {
    const int size = op.head_dim, shared = op.heads / op.kv_heads;
    const Format format = program_.cache;
    const Input to = queries(op);
    const Matrix like = keys_matrix(format, size, 1, nullptr);
    const bool bytes = format == Format::int8;
    const int padded = like.padded(), words = static_cast<int>(like.row_bytes() / 4), together = positions_of_word(format);
    const std::size_t panel = like.stride();
    float* row = scratch_[me.index].row.as();
    std::byte* rounded = scratch_[me.index].tile.as<std::byte>();
    const Input one = place(like, rounded, 1);
    const int half = op.rope < 0 ? 0 : static_cast<int>(program_.ropes[op.rope].frequencies.size());
    const auto turned = [&](const float* from, const Norm& norm, int at) -> const float* {
        const bool normed = norm.present && !op.whole_norms;
        if (!normed && op.rope < 0) return from;
        std::copy_n(from, size, row);
        if (normed) k_.norm(norm, row, row, size);
        if (op.rope >= 0) {
            const float* cosine = angles(op.rope, at);
            k_.rotate(row, cosine, cosine + round_up(half, kLanes), half);
        }
        return row;
    };
    const int items = job.rows * op.kv_heads;
    // Positions of a sequence that share a word of values are one member's.
    const auto whole = [&](int item) {
        for (; item < items; ++item) {
            const Sequence& sequence = job.sequences[sequence_of_[item % job.rows]];
            const int new_ones = item % job.rows - sequence.row;
            if (!new_ones || (sequence.past + new_ones) % together == 0) break;
        }
        return item;
    };
    const Share share = me.share(items);
    for (int item = whole(share.begin), end = whole(share.end); item < end; ++item) {
        const int head = item / job.rows, at = item % job.rows;
        const int index = sequence_of_[at];
        const Sequence& sequence = job.sequences[index];
        const int position = sequence.past + at - sequence.row;
        const float* from = mid_.as() + at * wide_;
        for (int g = 0; g < shared; ++g) {
            k_.prepare(like, turned(from + (head * shared + g) * size, op.query_norm, at), to, item * shared + g, 0, padded);
        }
        const KeyValues kv = key_values(op, sequence, index, head);
        k_.prepare(like, turned(from + (op.heads + head) * size, op.key_norm, at), one, 0, 0, padded);
        if (op.on_queries_present) k_.prepare(like, turned(from + (op.heads + head) * size, op.key_norm, at), keys(op), item, 0, padded);
        std::byte* lane = kv.keys + (position / kLanes) * panel + 4 * (position % kLanes);
        if (bytes) {
            std::memcpy(lane, one.scales, 4);
            lane += 64;
        }
        const std::uint32_t offset = bytes ? 0x80808080U : 0;  // stored as value + 128
        for (int word = 0; word < words; ++word) {
            std::uint32_t values;
            std::memcpy(&values, rounded + 4 * word, 4);
            values ^= offset;
            std::memcpy(lane + 64 * word, &values, 4);
        }
        const float scale =
            k_.put_value(format, from + (op.heads + op.kv_heads + head) * size, kv.values, kv.pitch, size, position);
        if (bytes) kv.scales[position] = scale;
        if (at != sequence.row + sequence.count - 1) continue;
        // What stands behind the last position is multiplied by 0, so it must be a number.
        const int rest = position / together + 1, all = round_up(position + 1, kPositions) / together;
        for (int p = 0; p < size; p += kLanes) {
            std::memset(kv.values + (p / kLanes) * kv.pitch + 64 * static_cast<std::size_t>(rest), 0, 64 * static_cast<std::size_t>(all - rest));
        }
    }
}

void Pass::attend(const Operation& op, const Job& job, Member me) {
    const int rows = std::max(1, kBlock / (op.heads / op.kv_heads)), parts = parts_of(op, job);
    const auto blocks_of = [&](const Sequence& sequence) { return (sequence.count + rows - 1) / rows; };
    int tasks = 0;
    for (const Sequence& sequence : job.sequences) tasks += blocks_of(sequence) * op.kv_heads * parts;
    std::size_t s = 0;
    int before = 0;  // tasks of the sequences before s
    // Sequences are not equally long, so there is always something to deal out.
    me.divide(tasks, 1, job.sequences.size() > 1 ? kManyRows : job.rows, [&](int begin, int end) {
        for (int task = begin; task < end; ++task) {
            for (int here; task - before >= (here = blocks_of(job.sequences[s]) * op.kv_heads * parts); ++s) before += here;
            const int count = job.sequences[s].count, blocks = blocks_of(job.sequences[s]);
            const int item = (task - before) / parts, part = (task - before) % parts;
            const int from = (blocks - 1 - item % blocks) * rows;  // those that see most come first
            const Block block{static_cast<int>(s), item / blocks, from, std::min(from + rows, count), part, parts};
            attend_block(op, job, block, scratch_[me.index]);
        }
    });
    if (parts == 1) return;
    me.meet();
    merge(op, job, parts, me);
}

// Into how many parts the positions are cut: one, or as many as the whole team has members where single tokens are read,
// the heads do not share out evenly, and there is enough to read. Not by who is here today: it changes the last digits.
int Pass::parts_of(const Operation& op, const Job& job) const {
    const std::size_t tasks = job.sequences.size() * op.kv_heads;
    const int members = static_cast<int>(scratch_.size());
    if (members == 1 || job.sequences.size() != static_cast<std::size_t>(job.rows) || tasks % members == 0) return 1;
    int least = program_.max_positions;
    for (const Sequence& sequence : job.sequences) least = std::min(least, sequence.past + 1);
    if (op.window) least = std::min(least, op.window);
    return least >= kLeastPart * members ? members : 1;
}

float* Pass::part_of(const Operation& op, int row, int head, int part, int parts) const {
    return parts_.as() + ((static_cast<std::size_t>(row) * op.heads + head) * parts + part) * part_size(op.head_dim);
}

// What the parts saw, each by its weight.
void Pass::merge(const Operation& op, const Job& job, int parts, Member me) {
    const int size = op.head_dim, behind = round_up(size, kLanes);
    const Share share = me.share(job.rows * op.heads);
    for (int item = share.begin; item < share.end; ++item) {
        const int row = item / op.heads, head = item % op.heads;
        float top = part_of(op, row, head, 0, parts)[behind], total = 0.0F;
        for (int part = 1; part < parts; ++part) top = std::max(top, part_of(op, row, head, part, parts)[behind]);
        float* y = seen_.as() + row * wide_ + head * size;
        std::fill_n(y, size, 0.0F);
        for (int part = 0; part < parts; ++part) {
            const float* one = part_of(op, row, head, part, parts);
            const float weight = std::exp(one[behind] - top);
            total += weight;
            for (int i = 0; i < size; ++i) y[i] += weight * one[i];
        }
        for (int i = 0; i < size; ++i) y[i] /= total;
    }
}

// Adds to the scores of a block, whose columns are positions [low, high), what the distances add: each query times those
// to all keys, each key times those to all queries. Of the rows of distances, only those from the first to the last of
// them are multiplied, of whole panels.
void Pass::add_distances(const Operation& op, const Block& block, const Sequence& sequence, int low, int high, Scratch& scratch) {
    const Distances& distances = program_.distances;
    const int rows = block.to - block.from, panels = distances.count / kLanes;
    const std::size_t width = round_up(high - low, kPositions), pitch = distances.count;
    float *scores = scratch.scores.as(), *products = scratch.distances.as();
    const auto multiply = [&](const Matrix& w, const Input& in, int row, int count, int first, int last) {
        const int panel = first / kLanes;
        k_.multiply(w, in, row, count, block.head * panels + panel, last / kLanes + 1 - panel, products + panel * kLanes, pitch, false);
    };
    const int base = block.head * rows_ + sequence.row;
    if (op.on_keys_present) {
        multiply(op.on_keys, queries(op), base + block.from, rows, *distances.at(block.from - high + 1), *distances.at(block.to - 1 - low));
        for (int i = 0; i < rows; ++i) {
            const std::int32_t* row = distances.at(block.from + i - low);
            for (int s = 0; s < high - low; ++s) scores[i * width + s] += products[i * pitch + row[-s]];
        }
    }
    if (!op.on_queries_present) return;
    for (int from = low; from < high; from += kKeys) {
        const int next = std::min(from + kKeys, high);
        multiply(op.on_queries, keys(op), base + from, next - from, *distances.at(block.from - next + 1), *distances.at(block.to - 1 - from));
        for (int s = from; s < next; ++s) {
            const std::int32_t* row = distances.at(block.from - s);
            for (int i = 0; i < rows; ++i) scores[i * width + s - low] += products[(s - from) * pitch + row[i]];
        }
    }
}

// What queries [from, to) of a sequence, of all heads that share one key head, see in one part of the positions.
void Pass::attend_block(const Operation& op, const Job& job, const Block& block, Scratch& scratch) {
    const Sequence& sequence = job.sequences[block.sequence];
    const int size = op.head_dim, shared = op.heads / op.kv_heads, rows = (block.to - block.from) * shared;
    const int total = sequence.past + sequence.count;
    const int first = sequence.past + block.from, last = sequence.past + block.to - 1;
    // The positions that any of these queries may look at, from a whole step of values on.
    const int window = op.window ? op.window : total;
    int low = std::max(0, first - window + 1) / kPositions * kPositions;
    int high = program_.causal ? last + 1 : std::min(total, last + window);
    const int piece = round_up((high - low + block.parts - 1) / block.parts, kPositions);
    low += block.part * piece;
    high = std::min(high, low + piece);
    const auto target = [&](int i) { return std::pair(sequence.row + block.from + i / shared, block.head * shared + i % shared); };
    const auto part = [&](int i) {
        const auto [row, head] = target(i);
        return part_of(op, row, head, block.part, block.parts);
    };
    if (low >= high) {  // parts are whole steps, so there can be fewer
        for (int i = 0; i < rows; ++i) {
            std::fill_n(part(i), size, 0.0F);
            part(i)[round_up(size, kLanes)] = -INFINITY;
        }
        return;
    }
    const KeyValues kv = key_values(op, sequence, block.sequence, block.head);
    Matrix keys = keys_matrix(program_.cache, size, high - low, kv.keys);
    keys.data += (low / kLanes) * keys.stride();
    Matrix values = values_matrix(program_.cache, size, high - low, kv.values, kv.pitch);
    values.data += static_cast<std::size_t>(low / positions_of_word(program_.cache)) * 64;
    const std::size_t width = round_up(high - low, kPositions), seen_width = round_up(size, kLanes);
    float* scores = scratch.scores.as();
    const Input q = queries(op);
    const int query = (block.head * rows_ + sequence.row + block.from) * shared;
    // Values come from memory while keys are multiplied, and keys ahead of their turn.
    const std::size_t key_bytes = kStep / kLanes * keys.stride(), value_bytes = 64 * kStep / positions_of_word(program_.cache);
    for (int from = 0; from < high - low; from += kStep) {
        const std::size_t step = from / kStep;
        fetch(keys.data + (step + kStepsAhead) * key_bytes, key_bytes);
        for (int panel = 0; panel < values.panels(); ++panel) fetch(values.data + panel * kv.pitch + step * value_bytes, value_bytes);
        const int first_panel = from / kLanes, panels = std::min(kStep / kLanes, keys.panels() - first_panel);
        k_.multiply(keys, q, query, rows, first_panel, panels, scores + from, width, false);
    }
    if (program_.distances.positions) add_distances(op, block, sequence, low, high, scratch);
    const Input probabilities = place(values, scratch.probabilities.as<std::byte>(), rows);
    const int padded = values.padded();
    for (int i = 0; i < rows; ++i) {
        const int position = first + i / shared;
        const int begin = std::max(0, position - window + 1 - low);
        const int end = std::min(program_.causal ? position + 1 : std::min(total, position + window), high) - low;
        float* weight = block.parts > 1 ? part(i) + seen_width : nullptr;
        const float factor = op.softcap > 0 ? 1.0F : op.scale;  // what a cap leaves is scaled
        if (op.softcap > 0) k_.cap(scores + i * width, static_cast<int>(width), op.scale, op.softcap);
        if (program_.relative.heads) {
            const int head = block.head * shared + i % shared;
            k_.shift(program_.relative.of(head, position) + low, 1.0F / factor, scores + i * width, begin, end);
        }
        k_.softmax(scores + i * width, begin, end, static_cast<int>(width), factor, weight);
        if (kv.scales) k_.weigh(kv.scales + low, scores + i * width, begin, end);
        k_.prepare(values, scores + i * width, probabilities, i, 0, padded);
    }
    float* seen = scratch.tile.as();
    k_.multiply(values, probabilities, 0, rows, 0, values.panels(), seen, seen_width, false);
    for (int i = 0; i < rows; ++i) {
        const auto [row, head] = target(i);
        std::copy_n(seen + i * seen_width, size, block.parts > 1 ? part(i) : seen_.as() + row * wide_ + head * size);
    }
}

}  // namespace chinchilla
