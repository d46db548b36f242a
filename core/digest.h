// Digests: 64 bits of what a tensor holds, whoever holds which part of it.
//
// An element at logical row-major index i whose fp32 value has the bits b adds
//
//     mix(i * 0x9E3779B97F4A7C15 + b * 0xD1B54A32D192ED03)            all modulo 2^64, with splitmix64's finalizer
//     mix(z):  z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9,  z = (z ^ z >> 27) * 0x94D049BB133111EB,  z ^ z >> 31
//
// and a tensor's digest is the sum over its elements. A sum knows no order: the digests of parts that make up a tensor add up
// to the tensor's, for any boxes on any ranks, and nobody gathers anything. A change of one value always changes it, because
// mix and multiplication by an odd factor are bijections; values exchanged or moved, and several changes, do but for a chance
// of 2^-64. Not cryptographic: it finds mistakes, not forgers.
#pragma once

#include "core/box.h"

// Of `count` neighbours, the first at logical index `index`.
uint64_t digest_run(int64_t index, const float *values, int64_t count);

// Of a list of boxes of a tensor of that shape; `values` in the list's order (box.h).
uint64_t digest_boxes(int dims, const int64_t *shape, const Box *boxes, int count, const float *values);
