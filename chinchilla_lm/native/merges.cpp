#include "merges.h"

#include <algorithm>
#include <bit>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>

namespace chinchilla {

namespace {

constexpr std::uint64_t kBase = 0x9e3779b97f4a7c15;  // of the hash; any odd number that is large

// Tokens by their text. The hash of a text is Σ (byte + 1) kBase^i, last byte first, so that of all parts of a text it
// comes from those of its beginnings.
class Table {
public:
    explicit Table(std::span<const std::string_view> tokens) : slots_(std::bit_ceil(2 * tokens.size() + 2)) {
        for (const std::string_view token : tokens) {  // all in one place: nearer than where they are
            starts_.push_back(text_.size());
            text_ += token;
        }
        starts_.push_back(text_.size());
        for (std::size_t i = 0; i < tokens.size(); ++i) {
            std::uint64_t hash = 0;
            for (const char byte : tokens[i]) hash = next(hash, byte);
            slots_[place(hash, tokens[i])] = {upper(hash), static_cast<std::int32_t>(i)};
        }
    }

    static std::uint64_t next(std::uint64_t hash, char byte) { return hash * kBase + static_cast<unsigned char>(byte) + 1; }
    int find(std::uint64_t hash, std::string_view text) const { return slots_[place(hash, text)].token; }

private:
    struct Slot {
        std::uint32_t upper = 0;
        std::int32_t token = -1;
    };

    static std::uint32_t upper(std::uint64_t hash) { return static_cast<std::uint32_t>(hash >> 32); }
    std::string_view token(int index) const {
        return std::string_view(text_).substr(starts_[index], starts_[index + 1] - starts_[index]);
    }
    std::size_t place(std::uint64_t hash, std::string_view text) const {  // where it is, or would be
        const std::size_t mask = slots_.size() - 1;
        std::size_t at = (hash ^ (hash >> 29)) & mask;
        for (; slots_[at].token >= 0; at = (at + 1) & mask) {
            if (slots_[at].upper == upper(hash) && token(slots_[at].token) == text) break;
        }
        return at;
    }

    std::string text_;
    std::vector<std::size_t> starts_;
    std::vector<Slot> slots_;
};

struct Symbol {  // bytes [begin, end) of the text; `count` characters
    int begin, end, count, before, after;
    bool known;  // a token
};

struct Merge {
    float score;
    int left, right, token, place, end;  // left, right: characters of the parts; place: the left symbol; end: in bytes
    bool operator<(const Merge& other) const {  // comes later
        if (score != other.score) return score < other.score;
        return std::tuple(left, right, -token, -place) < std::tuple(other.left, other.right, -other.token, -other.place);
    }
};

class Merger {
public:
    Merger(std::span<const std::string_view> tokens, std::span<const float> scores) : table_(tokens), scores_(scores) {
        for (const std::string_view token : tokens) powers_.resize(std::max(powers_.size(), token.size() + 1));
        std::uint64_t power = 1;
        for (std::uint64_t& one : powers_) one = std::exchange(power, power * kBase);
    }

    // Characters of the left part of the merge that leaves one symbol, or 0.
    int last(std::string_view text) {
        cut(text);
        heap_.clear();
        for (std::size_t i = 0; i + 1 < symbols_.size(); ++i) offer(static_cast<int>(i));
        int last = 0;
        while (!heap_.empty()) {
            std::pop_heap(heap_.begin(), heap_.end());
            const Merge next = heap_.back();
            heap_.pop_back();
            Symbol& left = symbols_[next.place];
            // What was offered may have been merged otherwise since; what is there now must still be this token.
            if (left.begin == left.end || left.after < 0 || symbols_[left.after].end != next.end) continue;
            last = left.count;
            join(next.place);
            if (left.before >= 0) offer(left.before);
            offer(next.place);
        }
        return static_cast<std::size_t>(symbols_[0].end) == text.size() ? last : 0;
    }

private:
    void cut(std::string_view text) {  // into characters
        text_ = text;
        symbols_.clear();
        hashes_.assign(1, 0);
        for (const char byte : text) hashes_.push_back(Table::next(hashes_.back(), byte));
        for (int at = 0, size = static_cast<int>(text.size()); at < size;) {
            int end = at + 1;
            while (end < size && (static_cast<unsigned char>(text[end]) & 0xC0) == 0x80) ++end;
            const int index = static_cast<int>(symbols_.size());
            symbols_.push_back({at, end, 1, index - 1, end < size ? index + 1 : -1, token_of(at, end) >= 0});
            at = end;
        }
    }

    int token_of(int begin, int end) const {  // or -1
        const std::uint64_t hash = hashes_[end] - hashes_[begin] * powers_[end - begin];
        return table_.find(hash, text_.substr(begin, end - begin));
    }

    void offer(int place) {
        const Symbol& left = symbols_[place];
        if (left.after < 0) return;
        const Symbol& right = symbols_[left.after];
        if (!left.known || !right.known) return;
        const int token = token_of(left.begin, right.end);
        if (token < 0) return;
        heap_.push_back({scores_[token], left.count, right.count, token, place, right.end});
        std::push_heap(heap_.begin(), heap_.end());
    }

    void join(int place) {
        Symbol& left = symbols_[place];
        Symbol& right = symbols_[left.after];
        left.end = right.end;
        left.count += right.count;
        left.after = right.after;
        if (left.after >= 0) symbols_[left.after].before = place;
        right.begin = right.end;
    }

    const Table table_;
    std::span<const float> scores_;
    std::vector<std::uint64_t> powers_, hashes_;
    std::string_view text_;
    std::vector<Symbol> symbols_;
    std::vector<Merge> heap_;
};

}  // namespace

std::vector<std::int32_t> last_merges(std::span<const std::string_view> tokens, std::span<const float> scores) {
    if (tokens.size() != scores.size()) throw std::invalid_argument("there are not as many scores as tokens");
    Merger merger(tokens, scores);
    std::vector<std::int32_t> found;
    found.reserve(tokens.size());
    for (const std::string_view token : tokens) found.push_back(token.empty() ? 0 : merger.last(token));
    return found;
}

}  // namespace chinchilla
