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
        fprintf(out, "  %-18s %s\n", commands[i]->name, commands[i]->summary);
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

// The command whose words start argv, and how many words that is.
static const Command *find_command(int argc, char **argv, int *words) {
    for (int i = 0; i < COMMAND_COUNT; i++) {
        const char *space = strchr(commands[i]->name, ' ');
        if (space == NULL && strcmp(argv[0], commands[i]->name) == 0) {
            *words = 1;
            return commands[i];
        }
        if (space != NULL && argc > 1 && strlen(argv[0]) == (size_t)(space - commands[i]->name) &&
            strncmp(argv[0], commands[i]->name, strlen(argv[0])) == 0 && strcmp(argv[1], space + 1) == 0) {
            *words = 2;
            return commands[i];
        }
    }
    return NULL;
}

static Error *unknown_command(int argc, char **argv) {
    const char *names[COMMAND_COUNT];
    for (int i = 0; i < COMMAND_COUNT; i++) {
        names[i] = commands[i]->name;
    }
    bool two_words = false;
    for (int i = 0; i < COMMAND_COUNT; i++) {
        two_words |= text_starts_with(names[i], argv[0]) && names[i][strlen(argv[0])] == ' ';
    }
    char *given = two_words && argc > 1 ? memory_format("%s %s", argv[0], argv[1]) : memory_string(argv[0]);
    int nearest = text_nearest(given, names, COMMAND_COUNT);
    Error *error = nearest >= 0 ? usage_error("there is no command '%s'; did you mean 'athanor %s'?", given, names[nearest])
                                : usage_error("there is no command '%s'; 'athanor --help' lists them", given);
    free(given);
    return error;
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

static Error *run_command(const Command *command, int argc, char **argv) {
    void *options = memory_zeroed(1, command->options_size ? command->options_size : 1);
    char **rest = memory_new((size_t)argc + 1, sizeof *rest);
    int count = 0;
    keys_defaults(command->flags, command->flag_count, options);
    Error *error = options_parse(command->flags, command->flag_count, options, argc, argv, rest, &count);
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

int main(int argc, char **argv) {
    process_begin();
    if (argc < 2) {
        print_overview(stderr);
        return 2;
    }
    if (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0 || strcmp(argv[1], "help") == 0) {
        print_overview(stdout);
        return 0;
    }
    if (strcmp(argv[1], "--version") == 0) {
        printf("athanor %s (%s)\n", ATHANOR_VERSION, ATHANOR_COMMIT);
        return 0;
    }
    int words = 0;
    const Command *command = find_command(argc - 1, argv + 1, &words);
    Error *error;
    if (command == NULL) {
        error = unknown_command(argc - 1, argv + 1);
    } else {
        for (int i = 1 + words; i < argc && strcmp(argv[i], "--") != 0; i++) {
            if (strcmp(argv[i], "--help") == 0 || strcmp(argv[i], "-h") == 0) {
                print_help(command);
                return 0;
            }
        }
        error = run_command(command, argc - 1 - words, argv + 1 + words);
    }
    if (error == NULL) {
        return 0;
    }
    log_error("%s", error->message);
    int code = error->kind == ERROR_USAGE ? 2 : 1;
    error_free(error);
    return code;
}
