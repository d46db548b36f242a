// Corpora and token files for people: see describe.h.
#include "data/tokens/describe.h"

#include "core/text.h"

#include <inttypes.h>
#include <stdio.h>

// "1234567" as "1 234 567".
static const char *grouped(char *out, int64_t value) {
    char digits[32];
    int n = snprintf(digits, sizeof digits, "%" PRId64, value), to = 0;
    for (int i = 0; i < n; i++) {
        if (i > 0 && (n - i) % 3 == 0) {
            out[to++] = ' ';
        }
        out[to++] = digits[i];
    }
    out[to] = 0;
    return out;
}

// One row of the table; `all` is the tokens of the whole corpus.
static void describe_set(Buffer *out, const char *name, int64_t documents, int64_t tokens, int64_t bytes, int64_t all) {
    char a[48], b[48], size[32] = "?", ratio[32] = "?";
    if (bytes >= 0) {
        text_bytes(size, (double)bytes);
    }
    if (bytes > 0) {
        snprintf(ratio, sizeof ratio, "%.4f", (double)tokens / (double)bytes);
    }
    buffer_printf(out, "%-28s %14s %18s %12s %12s %7.2f%%\n", name, grouped(a, documents), grouped(b, tokens), size, ratio,
                  100.0 * (double)tokens / (double)all);
}

static void describe_sets(const Corpus *corpus, Buffer *out) {
    int64_t documents = 0, tokens = 0, bytes = 0;
    for (int i = 0; i < corpus->set_count; i++) {
        documents += corpus->sets[i].documents;
        tokens += corpus->sets[i].tokens;
        bytes = bytes < 0 || corpus->sets[i].text_bytes < 0 ? -1 : bytes + corpus->sets[i].text_bytes;
    }
    buffer_printf(out, "%-28s %14s %18s %12s %12s %8s\n", "set", "documents", "tokens", "text", "tokens/byte", "share");
    for (int i = 0; i < corpus->set_count; i++) {
        const CorpusSet *set = &corpus->sets[i];
        describe_set(out, set->name, set->documents, set->tokens, set->text_bytes, tokens);
    }
    if (corpus->set_count > 1) {
        describe_set(out, "all", documents, tokens, bytes, tokens);
    }
}

static void describe_source(const Corpus *corpus, Buffer *out) {
    char bytes[32], vocabulary[48];
    double stored = 0;
    for (int i = 0; i < corpus->input_count; i++) {
        stored += (double)corpus->inputs[i].bytes;
    }
    buffer_printf(out, "tokenizer    %s, vocabulary %s, ", path_name(corpus->tokenizer_path),
                  grouped(vocabulary, corpus->vocabulary));
    if (corpus->end_of_text >= 0) {
        buffer_printf(out, "documents end with id %d, ", corpus->end_of_text);
    } else {
        buffer_printf(out, "no end-of-text id, ");
    }
    buffer_printf(out, "fingerprint %016" PRIx64 "\n", corpus->tokenizer_fingerprint);
    char shards[64], bad[64], empty[64];
    buffer_printf(out, "built from   %s of %s; %s and %s left out\n", text_number_of(shards, corpus->input_count, "shard"),
                  text_bytes(bytes, stored), text_number_of(bad, corpus->bad_lines, "bad line"),
                  text_number_of(empty, corpus->empty_documents, "empty document"));
}

Error *corpus_describe(const char *path, bool verify, Buffer *out) {
    Corpus corpus;
    TRY(corpus_open(path, &corpus));
    Error *error = verify ? corpus_verify(&corpus) : NULL;
    if (error == NULL) {
        buffer_printf(out, "%s %s\n", corpus.has_manifest ? "corpus" : "token file", path);
        describe_sets(&corpus, out);
        if (corpus.has_manifest) {
            describe_source(&corpus, out);
        }
        buffer_printf(out, "fingerprint  %016" PRIx64 "\n", corpus.fingerprint);
        if (verify) {
            buffer_printf(out, "whole        %s\n",
                          corpus.has_manifest
                              ? "yes: every checksum agrees, so does the tokenizer; every id lies in the vocabulary"
                              : "yes: counts, lengths and offsets agree (the format has no checksums)");
        }
    }
    corpus_close(&corpus);
    return error;
}

Error *token_file_describe(const char *path, bool verify, Buffer *out) {
    TokenFile file;
    TRY(token_file_open(path, &file));
    Error *error = NULL;
    char *prefix = token_file_prefix(path), text[48];
    int64_t longest = 0;
    for (int64_t d = 0; d < file.documents; d++) {
        int64_t length = token_file_document_start(&file, d + 1) - token_file_document_start(&file, d);
        longest = length > longest ? length : longest;
    }
    buffer_printf(out, "token file %s (.bin, .idx)\n", prefix);
    buffer_printf(out, "dtype        %s\n", file.bytes_per_token == 2 ? "u16" : "i32");
    buffer_printf(out, "tokens       %s\n", grouped(text, file.tokens));
    buffer_printf(out, "documents    %s", grouped(text, file.documents));
    buffer_printf(out, " in %s sequences", grouped(text, file.sequences));
    buffer_printf(out, ", the longest has %s tokens\n", grouped(text, longest));
    if (verify) {
        int32_t lowest, highest;
        error = token_file_range(&file, &lowest, &highest);
        if (error == NULL) {
            buffer_printf(out, "ids          %d to %d\n", lowest, highest);
        }
        if (error == NULL && lowest >= 0) {
            buffer_printf(out, "whole        yes: counts, lengths and offsets agree (the format has no checksums)\n");
        } else if (error == NULL) {
            error = damaged("%s.bin holds the negative id %d: it is no token file, or damaged", prefix, lowest);
        }
    }
    free(prefix);
    token_file_close(&file);
    return error;
}
