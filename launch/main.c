// athanor: finds the subcommand, parses its flags, runs it, and turns its error into one line and an exit code.
//
// Exit codes: 0 success, 1 failure, 2 wrong usage. Nothing below this file exits.
#include "core/durable.h"
#include "core/log.h"
#include "core/memory.h"
#include "core/options.h"
#include "core/process.h"
#include "core/text.h"
#include "core/version.h"
#include "launch/commands.h"

#include <stdio.h>

static const Command *const commands[] = {
#define COMMAND(name) &command_##name,
    COMMANDS
#undef COMMAND
};
enum { COMMAND_COUNT = sizeof commands / sizeof *commands };

static void print_overview(FILE *out) {
    fprintf(out, "athanor %s: trains decoder-only transformers, on a laptop or a cluster\n\n", ATHANOR_VERSION);
    fprintf(out, "usage: athanor COMMAND [flags] [arguments]     (athanor COMMAND --help explains one)\n\n");
    for (int i = 0; i < COMMAND_COUNT; i++) {
        fprintf(out, "  %-20s %s\n", commands[i]->name, commands[i]->summary);
    }
    fprintf(out, "\nThe shortest way in is launch/quickstart; README.md explains the rest.\n");
}

static void print_help(const Command *command) {
    Buffer flags = {0};
    options_help(command->flags, command->flag_count, &flags);
    printf("athanor %s: %s\n\nusage: athanor %s%s%s%s\n", command->name, command->summary, command->name,
           command->flag_count > 0 ? " [flags]" : "", *command->arguments ? " " : "", command->arguments);
    if (command->details != NULL) {
        printf("\n%s\n", command->details);
    }
    if (flags.size > 0) {
        printf("\nflags:\n%s", flags.data);
    }
    printf("\nexample:\n%s\n", command->example);
    buffer_free(&flags);
}

// Whether a command has two words, of which the first is `word`.
static bool in_group(const Command *command, const char *word) {
    return text_starts_with(command->name, word) && command->name[strlen(word)] == ' ';
}

static bool is_group(const char *word) {
    bool any = false;
    for (int i = 0; i < COMMAND_COUNT; i++) {
        any |= in_group(commands[i], word);
    }
    return any;
}

static void print_group(const char *word) {
    printf("usage: athanor %s COMMAND [flags] [arguments]     (athanor %s COMMAND --help explains one)\n\n", word, word);
    for (int i = 0; i < COMMAND_COUNT; i++) {
        if (in_group(commands[i], word)) {
            printf("  %-20s %s\n", commands[i]->name, commands[i]->summary);
        }
    }
}

// The command whose words start argv, and how many words that is.
static const Command *find_command(int argc, char **argv, int *words) {
    for (int i = 0; i < COMMAND_COUNT && argc > 0; i++) {
        if (strcmp(commands[i]->name, argv[0]) == 0) {
            *words = 1;
            return commands[i];
        }
        if (argc > 1 && in_group(commands[i], argv[0]) && strcmp(commands[i]->name + strlen(argv[0]) + 1, argv[1]) == 0) {
            *words = 2;
            return commands[i];
        }
    }
    return NULL;
}

// The first of two words alone, or before something that is no second word: says what there is.
static Error *unknown_in_group(const char *word, const char *second) {
    const char *names[COMMAND_COUNT];
    int count = 0;
    Buffer list = {0};
    for (int i = 0; i < COMMAND_COUNT; i++) {
        if (in_group(commands[i], word)) {
            names[count++] = commands[i]->name + strlen(word) + 1;
            buffer_printf(&list, "%s%s", list.size > 0 ? ", " : "", commands[i]->name);
        }
    }
    int nearest = second != NULL ? text_nearest(second, names, count) : -1;
    Error *error = nearest >= 0 ? usage_error("there is no command '%s %s'; did you mean 'athanor %s %s'?", word, second, word,
                                              names[nearest])
                   : second != NULL ? usage_error("there is no command '%s %s'; there are: %s", word, second, list.data)
                                    : usage_error("'%s' needs a second word; there are: %s", word, list.data);
    buffer_free(&list);
    return error;
}

static Error *unknown_command(int argc, char **argv) {
    if (is_group(argv[0])) {
        return unknown_in_group(argv[0], argc > 1 ? argv[1] : NULL);
    }
    const char *names[COMMAND_COUNT];
    for (int i = 0; i < COMMAND_COUNT; i++) {
        names[i] = commands[i]->name;
    }
    int nearest = text_nearest(argv[0], names, COMMAND_COUNT);
    return nearest >= 0 ? usage_error("there is no command '%s'; did you mean 'athanor %s'?", argv[0], names[nearest])
                        : usage_error("there is no command '%s'; 'athanor --help' lists them", argv[0]);
}

// An unquoted pattern is spread into files by the shell, of which a flag takes the first: the likeliest way to have too many.
static Error *wrong_count(const Command *command, int count, char **arguments) {
    char *usage = memory_format("usage: athanor %s%s%s%s", command->name, command->flag_count > 0 ? " [flags]" : "",
                                *command->arguments ? " " : "", command->arguments);
    bool few = count < command->least_arguments;
    const char *extra = few ? "" : arguments[command->most_arguments];
    Error *error = few ? usage_error("an argument is missing; %s", usage)
                       : usage_error("too many arguments, from '%s' on%s; %s", extra,
                                     command->most_arguments == 0 && path_exists(extra) && !path_is_folder(extra)
                                         ? " (put a pattern of files in quotes)"
                                         : "",
                                     usage);
    free(usage);
    return error;
}

// A setting that is given as if it were a flag, the likeliest way to have an unknown one: puts that into `error`.
static Error *dashed_setting(const Command *command, int argc, char **argv, Error *error) {
    int count = 0;
    const Key *settings = command->settings != NULL ? command->settings(&count) : NULL;
    for (int i = 0; i < argc && count > 0 && strcmp(argv[i], "--") != 0; i++) {
        size_t length = strcspn(argv[i], "=");
        char *name = memory_format("%.*s", (int)length, argv[i]);
        const Key *meant[KEYS_MEANT] = {NULL};
        if (text_starts_with(name, "--") && keys_find(command->flags, command->flag_count, name + 2) == NULL) {
            meant[0] = keys_find(settings, count, name + 2);
            if (meant[0] != NULL || keys_meant(settings, count, name + 2, meant) == 1) {
                error_free(error);
                error = usage_error("command line: unknown flag %s; settings have no dashes: %s=%s", name, meant[0]->name,
                                    argv[i][length] == '=' ? argv[i] + length + 1 : "VALUE");
                argc = 0;
            }
        }
        free(name);
    }
    return error;
}

static Error *run_command(const Command *command, int argc, char **argv) {
    void *options = memory_zeroed(1, command->options_size ? command->options_size : 1);
    char **rest = memory_new((size_t)argc + 1, sizeof *rest);
    int count = 0;
    keys_defaults(command->flags, command->flag_count, options);
    Error *error = options_parse(command->flags, command->flag_count, options, argc, argv, rest, &count);
    if (error != NULL) {
        error = dashed_setting(command, argc, argv, error);
    }
    if (error == NULL &&
        (count < command->least_arguments || (command->most_arguments >= 0 && count > command->most_arguments))) {
        error = wrong_count(command, count, rest);
    }
    if (error == NULL) {
        error = command->run(options, count, rest);
    }
    if ((fflush(stdout) != 0 || ferror(stdout)) && error == NULL) {
        error = failure("standard output cannot be written");
    }
    keys_free(command->flags, command->flag_count, options);
    free(options);
    free(rest);
    return error;
}

static bool asks_for_help(const char *word) {
    return strcmp(word, "--help") == 0 || strcmp(word, "-h") == 0;
}

// "help", "help WORDS" and "WORDS --help"; false where the words are no command's.
static bool help(int argc, char **argv) {
    int words = 0;
    const Command *command = find_command(argc, argv, &words);
    if (argc == 0 || asks_for_help(argv[0])) {
        print_overview(stdout);
    } else if (command != NULL) {
        print_help(command);
    } else if (is_group(argv[0]) && (argc == 1 || asks_for_help(argv[1]))) {
        print_group(argv[0]);
    } else {
        return false;
    }
    return true;
}

int main(int argc, char **argv) {
    process_begin();
    if (argc < 2) {
        print_overview(stderr);
        return 2;
    }
    if (strcmp(argv[1], "--version") == 0) {
        printf("athanor %s (%s)\n", ATHANOR_VERSION, ATHANOR_COMMIT);
        return 0;
    }
    argc--;
    argv++;
    bool asked = false;
    for (int i = 0; i < argc && strcmp(argv[i], "--") != 0; i++) {
        asked |= asks_for_help(argv[i]);
    }
    bool word = strcmp(argv[0], "help") == 0;
    if ((word || asked) && help(argc - word, argv + word)) {
        return 0;
    }
    argc -= word;  // help for what there is not: says so
    argv += word;
    int words = 0;
    const Command *command = find_command(argc, argv, &words);
    Error *error = command == NULL ? unknown_command(argc, argv) : run_command(command, argc - words, argv + words);
    if (error == NULL) {
        return 0;
    }
    log_error("%s", error->message);
    int code = error->kind == ERROR_USAGE ? 2 : 1;
    error_free(error);
    return code;
}
