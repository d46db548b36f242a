// Constants of the token file format, for token_file.c and token_writer.c.
#pragma once

#define TOKEN_MAGIC "MMIDIDX\0\0"  // nine bytes

enum { TOKEN_HEADER_BYTES = 34, TOKEN_DTYPE_I32 = 4, TOKEN_DTYPE_U16 = 8 };

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "token files are little-endian and mapped as they are: this machine is not"
#endif
