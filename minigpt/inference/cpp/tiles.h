// Products of a few rows of x with a few rows of W, by the registers of this processor.

#pragma once

#include "float_tile.h"
#include "int4_tile.h"
#include "int8_tile.h"

#include <type_traits>

// call(std::integral_constant<int, n>()), n from 1 to MOST: a number that the compiler knows.
template <int MOST, typename Call>
static void with_constant(int64_t n, Call call) {
  if constexpr (MOST > 1)
    if (n < MOST) return with_constant<MOST - 1>(n, call);
  call(std::integral_constant<int, MOST>());
}
