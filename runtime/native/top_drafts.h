// The best tokens of a row of logits and their log-probabilities, without the other tokens' being written down.
#pragma once
#include <cstddef>
#include <cstdint>

#include "cpu.h"
#include "parallel.h"

namespace gorgon {

// logits [rows, vocab] -> logprobs, tokens [rows, top_k], best first, of equal ones the first; 1 <= top_k <= vocab.
void top_drafts(const float* logits, std::size_t rows, std::size_t vocab, std::size_t top_k, float* logprobs,
                std::int64_t* tokens, Path path, const Parallel& pool);

// logits [rows, vocab] -> tokens [rows]: each row's best, the first of equal ones.
void best_tokens(const float* logits, std::size_t rows, std::size_t vocab, std::int64_t* tokens, Path path,
                 const Parallel& pool);

}  // namespace gorgon
