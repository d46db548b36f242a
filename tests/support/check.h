// The whole test framework: checks that say what was expected, counted, and an exit code.
//
//   int main(void) { RUN(test_something); return check_report(); }
#pragma once

#include "core/error.h"

#include <stdint.h>

// Each check continues after a failure and prints file, line and values; returns whether it held.
#define CHECK(condition) check_true(__FILE__, __LINE__, (condition), #condition)
#define CHECK_I64(actual, expected) check_i64(__FILE__, __LINE__, #actual, (int64_t)(actual), (int64_t)(expected))
#define CHECK_TEXT(actual, expected) check_text(__FILE__, __LINE__, #actual, (actual), (expected))
#define CHECK_NEAR(actual, expected, tolerance) check_near(__FILE__, __LINE__, #actual, (actual), (expected), (tolerance))
#define CHECK_OK(expression) check_ok(__FILE__, __LINE__, #expression, (expression))
// The expression must fail and its message must contain `part`.
#define CHECK_FAILS(expression, part) check_fails(__FILE__, __LINE__, #expression, (expression), (part))
#define RUN(test) check_run(#test, test)

bool check_true(const char *file, int line, bool held, const char *condition);
bool check_i64(const char *file, int line, const char *what, int64_t actual, int64_t expected);
bool check_text(const char *file, int line, const char *what, const char *actual, const char *expected);
bool check_near(const char *file, int line, const char *what, double actual, double expected, double tolerance);
bool check_ok(const char *file, int line, const char *what, Error *error);
bool check_fails(const char *file, int line, const char *what, Error *error, const char *part);
void check_run(const char *name, void (*test)(void));
int check_report(void);  // prints the counts, returns 0 or 1

// A fresh folder under the system's temporary folder, removed at exit. The path lives until exit.
const char *check_folder(void);
