// Files of plain text: see text_file.h.
#include "data/text/text_file.h"

#include "core/text.h"
#include "data/text/byte_source.h"

enum { TEXT_BYTES = 256 << 10, CARRY_BYTES = 3 };

static Error *read_text(ByteSource *source, char *buffer, TextSink sink, void *context, bool *valid) {
    size_t filled = 0, got;
    bool begun = false;
    do {
        // Fill the buffer, so that pieces do not depend on how the file arrives.
        do {
            TRY(byte_source_read(source, buffer + filled, TEXT_BYTES - filled, &got));
            filled += got;
        } while (got > 0 && filled < TEXT_BYTES);
        size_t mark = !begun && filled >= 3 && memcmp(buffer, "\xEF\xBB\xBF", 3) == 0 ? 3 : 0;
        begun = true;
        size_t good = utf8_valid_prefix(buffer, filled);
        if (filled - good > (got > 0 ? CARRY_BYTES : 0)) {
            *valid = false;
            return NULL;
        }
        if (good > mark) {
            TRY(sink(context, buffer + mark, good - mark));
        }
        memmove(buffer, buffer + good, filled - good);
        filled -= good;
    } while (got > 0);
    return NULL;
}

Error *text_file_read(const char *path, TextSink sink, void *context, bool *valid) {
    ByteSource *source;
    *valid = true;
    TRY(byte_source_open(path, &source));
    char *buffer = memory_new(TEXT_BYTES, 1);
    Error *error = read_text(source, buffer, sink, context, valid);
    free(buffer);
    byte_source_close(source);
    return error;
}
