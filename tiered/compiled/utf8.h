/* UTF-8 of one code point: PyUnicode_AsUTF8AndSize would keep a copy in the text, which is the caller's memory. */
#ifndef TIERED_UTF8_H
#define TIERED_UTF8_H

#include "native.h"

/* Bytes that a code point takes, 0 for a surrogate, which has no UTF-8. */
static inline int
utf8_size(Py_UCS4 point)
{
    if (point < 0x800)
        return point < 0x80 ? 1 : 2;
    if (point >= 0xD800 && point <= 0xDFFF)
        return 0;
    return point < 0x10000 ? 3 : 4;
}

/* Write a code point, which is no surrogate; returns its size. */
static inline int
put_utf8(unsigned char *at, Py_UCS4 point)
{
    static const unsigned char leads[] = {0, 0, 0xC0, 0xE0, 0xF0};
    int size = utf8_size(point);
    if (size == 1) {
        *at = (unsigned char)point;
        return 1;
    }
    for (int index = size - 1; index > 0; index--) {
        at[index] = (unsigned char)(0x80 | (point & 0x3F));
        point >>= 6;
    }
    at[0] = (unsigned char)(leads[size] | point);
    return size;
}

#endif
