// Parts of a corpus: see build_part.h.
#include "data/tokens/build_part.h"

#include "core/json.h"
#include "core/output.h"

struct PartWriter {
    char *path;
    int bytes_per_token;
    uint64_t job;
    Output *tokens, *documents;
    Strings sets;
    PartCounts counts;
    int64_t open;  // tokens of the open document
};

enum { PART_JSON_LIMIT = 1 << 20 };

static char *part_name(const char *path, const char *kind) {
    return memory_format("%s.%s", path, kind);
}

static Error *create_file(const char *path, const char *kind, Output **out) {
    char *name = part_name(path, kind);
    Error *error = output_create(name, out);
    free(name);
    return error;
}

static void release(PartWriter *writer) {
    output_abandon(writer->tokens);
    output_abandon(writer->documents);
    strings_free(&writer->sets);
    free(writer->path);
    free(writer);
}

Error *part_writer_create(const char *path, int bytes_per_token, uint64_t job, PartWriter **out) {
    *out = NULL;
    PartWriter *writer = memory_zeroed(1, sizeof *writer);
    writer->path = memory_string(path);
    writer->bytes_per_token = bytes_per_token;
    writer->job = job;
    char *json = part_name(path, "json");
    Error *error = folder_remove(json);  // a file is removed as well
    free(json);
    if (error == NULL) {
        error = create_file(path, "tokens", &writer->tokens);
    }
    if (error == NULL) {
        error = create_file(path, "documents", &writer->documents);
    }
    if (error != NULL) {
        release(writer);
        return error;
    }
    *out = writer;
    return NULL;
}

Error *part_writer_set(PartWriter *writer, const char *name, int64_t *index) {
    size_t i = 0;
    while (i < writer->sets.count && strcmp(writer->sets.items[i], name) != 0) {
        i++;
    }
    if (i == PART_SETS_MOST) {
        return failure("more than %d sets in one shard: is \"pile_set_name\" something else there?", PART_SETS_MOST);
    }
    if (i == writer->sets.count) {
        strings_add(&writer->sets, name);
    }
    *index = (int64_t)i;
    return NULL;
}

Error *part_writer_tokens(PartWriter *writer, const int32_t *tokens, size_t count) {
    writer->open += (int64_t)count;
    if (writer->open > INT32_MAX) {
        return failure("a document has more than 2147483647 tokens, the token file format's limit");
    }
    if (writer->bytes_per_token == 4) {
        return output_write(writer->tokens, tokens, 4 * count);
    }
    enum { STEP = 4096 };
    uint16_t narrow[STEP];
    for (size_t first = 0; first < count; first += STEP) {
        size_t n = count - first < STEP ? count - first : STEP;
        for (size_t i = 0; i < n; i++) {
            narrow[i] = (uint16_t)tokens[first + i];
        }
        TRY(output_write(writer->tokens, narrow, 2 * n));
    }
    return NULL;
}

Error *part_writer_end(PartWriter *writer, int64_t text_bytes, int64_t set) {
    DocumentRecord record = {writer->open, text_bytes, set};
    writer->counts.documents++;
    writer->counts.tokens += writer->open;
    writer->open = 0;
    return output_write(writer->documents, &record, sizeof record);
}

Error *part_writer_forget(PartWriter *writer) {
    writer->open = 0;
    return output_cut(writer->tokens, writer->counts.tokens * writer->bytes_per_token);
}

static Error *write_json(const PartWriter *writer) {
    json_t *sets = json_array();
    for (size_t i = 0; i < writer->sets.count; i++) {
        json_array_append_new(sets, json_string(writer->sets.items[i]));
    }
    json_t *document = json_pack("{s:o, s:I, s:I, s:I, s:I, s:o}", "job", json_hex64(writer->job), "documents",
                                 (json_int_t)writer->counts.documents, "tokens", (json_int_t)writer->counts.tokens, "bad_lines",
                                 (json_int_t)writer->counts.bad_lines, "empty_documents",
                                 (json_int_t)writer->counts.empty_documents, "sets", sets);
    ensure(document != NULL, "the part %s cannot be described", writer->path);
    char *name = part_name(writer->path, "json");
    Error *error = json_write_file(name, document);
    free(name);
    json_decref(document);
    return error;
}

Error *part_writer_finish(PartWriter *writer, int64_t bad_lines, int64_t empty_documents) {
    ensure(writer->open == 0, "a document is still open");
    writer->counts.bad_lines = bad_lines;
    writer->counts.empty_documents = empty_documents;
    Error *error = output_finish(writer->tokens, NULL);
    writer->tokens = NULL;
    if (error == NULL) {
        error = output_finish(writer->documents, NULL);
        writer->documents = NULL;
    }
    if (error == NULL) {
        error = write_json(writer);
    }
    release(writer);
    return error;
}

void part_writer_abandon(PartWriter *writer) {
    if (writer != NULL) {
        release(writer);
    }
}

static Error *read_json(const char *name, uint64_t job, Part *part) {
    json_t *document, *sets;
    uint64_t own_job;
    TRY(json_read_file(name, PART_JSON_LIMIT, &document));
    const int64_t most = INT64_MAX / 64;
    Error *error = json_field_hex64(document, name, "job", &own_job);
    if (error == NULL && own_job != job) {
        error = damaged("%s belongs to another job", name);
    }
    if (error == NULL) {
        error = json_field_i64(document, name, "documents", 0, most, &part->counts.documents);
    }
    if (error == NULL) {
        error = json_field_i64(document, name, "tokens", 0, most, &part->counts.tokens);
    }
    if (error == NULL) {
        error = json_field_i64(document, name, "bad_lines", 0, most, &part->counts.bad_lines);
    }
    if (error == NULL) {
        error = json_field_i64(document, name, "empty_documents", 0, most, &part->counts.empty_documents);
    }
    if (error == NULL) {
        error = json_field_array(document, name, "sets", &sets);
    }
    for (size_t i = 0; error == NULL && i < json_array_size(sets); i++) {
        const char *text = json_string_value(json_array_get(sets, i));
        if (text != NULL) {
            strings_add(&part->sets, text);
        } else {
            error = damaged("%s: a set's name is no text", name);
        }
    }
    json_decref(document);
    return error;
}

// The records describe exactly the tokens that are there.
static Error *check_records(const char *path, const Part *part, int bytes_per_token) {
    const DocumentRecord *records = part->documents.data;
    int64_t tokens = 0;
    bool good = part->documents.size == (size_t)part->counts.documents * sizeof *records &&
                part->tokens.size == (size_t)part->counts.tokens * (size_t)bytes_per_token;
    for (int64_t i = 0; good && i < part->counts.documents; i++) {
        good = records[i].tokens > 0 && records[i].tokens <= part->counts.tokens - tokens && records[i].set >= 0 &&
               records[i].set < (int64_t)part->sets.count;
        tokens += records[i].tokens;
    }
    return good && tokens == part->counts.tokens ? NULL : damaged("the part %s is not whole", path);
}

Error *part_open(const char *path, int bytes_per_token, uint64_t job, Part *out) {
    *out = (Part){0};
    char *json = part_name(path, "json"), *tokens = part_name(path, "tokens"), *documents = part_name(path, "documents");
    Error *error = read_json(json, job, out);
    if (error == NULL) {
        error = file_map(tokens, &out->tokens);
    }
    if (error == NULL) {
        error = file_map(documents, &out->documents);
    }
    if (error == NULL) {
        error = check_records(path, out, bytes_per_token);
    }
    if (error != NULL) {
        part_close(out);
    }
    free(json);
    free(tokens);
    free(documents);
    return error;
}

void part_close(Part *part) {
    strings_free(&part->sets);
    file_unmap(&part->tokens);
    file_unmap(&part->documents);
    *part = (Part){0};
}
