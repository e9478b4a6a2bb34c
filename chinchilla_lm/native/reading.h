// A program's header, as Python reads it from its file, into a program over the file's bytes.
#pragma once

#include <nanobind/nanobind.h>

#include <span>

#include "program.h"

namespace chinchilla {

// A matrix, table or vector is a dictionary with `offset`, the place of its bytes in the data. Throws
// std::invalid_argument for a key that is missing, a value of another type or out of range, and bytes outside the data.
Program read_program(const nanobind::dict& header, std::span<const std::byte> data);
Matrix read_matrix(const nanobind::dict& from, std::span<const std::byte> data);
Activation read_activation(const std::string& name);

}  // namespace chinchilla
