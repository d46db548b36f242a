// Every operation of cards against float64, over the table of cases in tests/support/ops.c: of the simulated card as sm_80 and
// sm_90, in fp32, bf16 and fp16; with ATHANOR_TEST_DEVICE=cuda of the first real card instead.
#include "tests/support/check.h"
#include "tests/support/op_check.h"

#include <stdio.h>

enum { SKIPPED = 77 };  // for ctest

static OpDevices devices;

static void test_cases(void) {
    // Under a sanitizer the simulated card is slow.
    const char *sanitize = getenv("ATHANOR_SANITIZE");
    op_check_cases(&devices, sanitize != NULL && *sanitize != 0 ? 3 : 1);
}

int main(void) {
    op_devices_cards(&devices);
    if (devices.count == 0) {
        printf("skipped: this build has no simulated card\n");
        return SKIPPED;
    }
    RUN(test_cases);
    op_devices_close(&devices);
    return check_report();
}
