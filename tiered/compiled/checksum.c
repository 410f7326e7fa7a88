/* CRC-32 as zlib computes it (polynomial 0xEDB88320), eight bytes at a time by eight tables
 * (Kounavis and Berry, "Novel Table Lookup-Based Algorithms for High-Performance CRC Generation", 2008), and where the
 * processor multiplies polynomials, 64 bytes at a time (Gopal et al., "Fast CRC Computation for Generic Polynomials
 * Using PCLMULQDQ Instruction", Intel, 2009). */
#include "checksum.h"

#include <string.h>

#if defined(__x86_64__) && defined(__GNUC__)
#define FOLDING
#include <immintrin.h>
#endif

static uint32_t table[8][256];

static void
fill_table(void)
{
    for (uint32_t byte = 0; byte < 256; byte++) {
        uint32_t crc = byte;
        for (int bit = 0; bit < 8; bit++)
            crc = crc & 1 ? crc >> 1 ^ 0xEDB88320u : crc >> 1;
        table[0][byte] = crc;
    }
    for (int slice = 1; slice < 8; slice++)
        for (int byte = 0; byte < 256; byte++)
            table[slice][byte] = table[slice - 1][byte] >> 8 ^ table[0][table[slice - 1][byte] & 0xFF];
}

#ifdef FOLDING
static int folds;

enum { FOLD_BYTES = 64 };

/* The remainder of `at` times the two powers of x in `powers`, added to the block they lead to. */
__attribute__((target("pclmul,sse4.1"))) static inline __m128i
folded(__m128i at, __m128i powers, __m128i onto)
{
    return _mm_xor_si128(_mm_xor_si128(_mm_clmulepi64_si128(at, powers, 0x00), _mm_clmulepi64_si128(at, powers, 0x11)), onto);
}

static inline __m128i
block_at(const unsigned char *data)
{
    return _mm_loadu_si128((const __m128i *)(const void *)data);
}

/* The register after `size` bytes, a multiple of 16 and at least FOLD_BYTES.  The constants are x to the power of the
 * bits folded over, less and more 32, and for the end of Barrett's reduction the quotient and the polynomial, all modulo
 * the polynomial and with their bits reversed, as bits of a CRC come in that order. */
__attribute__((target("pclmul,sse4.1"))) static uint32_t
fold(uint32_t crc, const unsigned char *data, size_t size)
{
    const __m128i over_64 = _mm_set_epi64x(0x01C6E41596, 0x0154442BD4), over_16 = _mm_set_epi64x(0x00CCAA009E, 0x01751997D0);
    const __m128i reduction = _mm_set_epi64x(0x01F7011641, 0x01DB710641), low = _mm_set_epi32(0, 0, 0, -1);
    __m128i a = _mm_xor_si128(block_at(data), _mm_cvtsi32_si128((int)crc)), b = block_at(data + 16), c = block_at(data + 32),
            d = block_at(data + 48);
    for (data += 64, size -= 64; size >= 64; data += 64, size -= 64) {
        a = folded(a, over_64, block_at(data));
        b = folded(b, over_64, block_at(data + 16));
        c = folded(c, over_64, block_at(data + 32));
        d = folded(d, over_64, block_at(data + 48));
    }
    a = folded(folded(folded(a, over_16, b), over_16, c), over_16, d);
    for (; size; data += 16, size -= 16)
        a = folded(a, over_16, block_at(data));
    /* 128 bits to 96, to 64, and by Barrett's reduction to 32. */
    a = _mm_xor_si128(_mm_srli_si128(a, 8), _mm_clmulepi64_si128(a, over_16, 0x10));
    a = _mm_xor_si128(_mm_srli_si128(a, 4),
                      _mm_clmulepi64_si128(_mm_and_si128(a, low), _mm_set_epi64x(0, 0x0163CD6124), 0x00));
    b = _mm_clmulepi64_si128(_mm_and_si128(a, low), reduction, 0x10);
    b = _mm_clmulepi64_si128(_mm_and_si128(b, low), reduction, 0x00);
    return (uint32_t)_mm_extract_epi32(_mm_xor_si128(a, b), 1);
}
#endif

uint32_t
tiered_crc32(uint32_t crc, const unsigned char *data, size_t size)
{
    crc = ~crc;
#ifdef FOLDING
    if (size >= FOLD_BYTES && folds) {
        size_t whole = size & ~(size_t)15;
        crc = fold(crc, data, whole);
        data += whole;
        size -= whole;
    }
#endif
    while (size >= 8) {
        uint64_t word;
        memcpy(&word, data, 8); /* Little-endian, as the module checks when it is loaded. */
        word ^= crc;
        crc = table[7][word & 0xFF] ^ table[6][word >> 8 & 0xFF] ^ table[5][word >> 16 & 0xFF]
            ^ table[4][word >> 24 & 0xFF] ^ table[3][word >> 32 & 0xFF] ^ table[2][word >> 40 & 0xFF]
            ^ table[1][word >> 48 & 0xFF] ^ table[0][word >> 56];
        data += 8;
        size -= 8;
    }
    while (size--)
        crc = crc >> 8 ^ table[0][(crc ^ *data++) & 0xFF];
    return ~crc;
}

static PyObject *
crc32(PyObject *module, PyObject *args)
{
    Py_buffer data;
    unsigned int start = 0;
    if (!PyArg_ParseTuple(args, "y*|I:crc32", &data, &start))
        return NULL;
    uint32_t crc = tiered_crc32(start, data.buf, (size_t)data.len);
    PyBuffer_Release(&data);
    return PyLong_FromUnsignedLong(crc);
}

static PyMethodDef methods[] = {
    {"crc32", crc32, METH_VARARGS, "crc32(data, start=0): as zlib.crc32."},
    {NULL, NULL, 0, NULL},
};

int
tiered_add_checksum(PyObject *module)
{
    const uint16_t one = 1;
    if (*(const unsigned char *)&one != 1) {
        PyErr_SetString(PyExc_ImportError, "tiered._native is for little-endian machines");
        return -1;
    }
    fill_table();
#ifdef FOLDING
    folds = __builtin_cpu_supports("pclmul") && __builtin_cpu_supports("sse4.1");
#endif
    return PyModule_AddFunctions(module, methods);
}
