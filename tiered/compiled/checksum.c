/* CRC-32 as zlib computes it (polynomial 0xEDB88320), eight bytes at a time by eight tables
 * (Kounavis and Berry, "Novel Table Lookup-Based Algorithms for High-Performance CRC Generation", 2008). */
#include "checksum.h"

#include <string.h>

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

uint32_t
tiered_crc32(uint32_t crc, const unsigned char *data, size_t size)
{
    crc = ~crc;
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
    return PyModule_AddFunctions(module, methods);
}
