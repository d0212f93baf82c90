/* The integer operators of an exported intseg model.
 *
 * Plain C99: no floating point, no allocation, no library beyond memcpy and memset. Every right shift is of an
 * unsigned value, so that nothing depends on how a compiler treats negative ones. Values are rounded to nearest, ties
 * to even, everywhere.
 *
 * Maps are [rows, columns, channels]. Of each only some rows are in memory: all of them, or those that a horizontal
 * strip of the image needs. */
#ifndef INTSEG_NN_H
#define INTSEG_NN_H

#include <stddef.h>
#include <stdint.h>

/* Which instructions convolutions use: INTSEG_PLAIN (any core), INTSEG_DSP (Cortex-M4, M7, M33: two 16-bit products an
 * instruction), INTSEG_MVE (Cortex-M55: sixteen 8-bit products). All give the same bits. Define one to force it. */
#if !defined(INTSEG_PLAIN) && !defined(INTSEG_DSP) && !defined(INTSEG_MVE)
#if defined(__ARM_FEATURE_MVE) && (__ARM_FEATURE_MVE & 1)
#define INTSEG_MVE 1
#elif defined(__ARM_FEATURE_DSP) && defined(__GNUC__)
#define INTSEG_DSP 1
#else
#define INTSEG_PLAIN 1
#endif
#endif

/* A map's whole size, and which of its rows are in memory. */
typedef struct {
    int32_t height, width, channels;
    int32_t first, rows;
} intseg_map;

/* One multiplier, bias and shift a channel: clamp(round((value * multiplier + bias) / 2^shift)). */
typedef struct {
    const int32_t *multiplier;
    /* The bias, half of the unit, and 2^63, modulo 2^64. */
    const uint64_t *bias;
    /* The shift less 32: 1..30. */
    const uint8_t *shift;
    /* A power of two that values are multiplied by first, where a shift would be too small. */
    int32_t unit;
    int32_t low, high;
} intseg_scale;

/* The element of `in` at which the first row of `out` begins: an input may hold more rows, for other readers. */
static inline int32_t intseg_skip(const intseg_map *in, const intseg_map *out) {
    return (out->first - in->first) * in->width * in->channels;
}
