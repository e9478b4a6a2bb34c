// Which merge makes each token of a byte-pair vocabulary that lists none.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

namespace chinchilla {

// For each token, UTF-8, the characters of the left one of the two tokens that become it when the token itself is the
// text; 0 where no merge makes it. Two neighbours merge where together they are a token: of the highest score first, then
// the one with the longer left part, then the longer right one (in characters), then the earlier token, then the place
// further left. Throws std::invalid_argument where there are not as many scores as tokens.
std::vector<std::int32_t> last_merges(std::span<const std::string_view> tokens, std::span<const float> scores);

}  // namespace chinchilla
