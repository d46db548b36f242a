// Small corpora for tests.
#pragma once

// Writes a tokenizer of plain bytes: byte b is id b + 1, and 0 ends a document; 257 ids.
void write_byte_tokenizer(const char *path);
