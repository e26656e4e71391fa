// Leaks in C, called by Go: from the first thread, and from another.
package main

/*
#include <stdlib.h>

static void *volatile kept;
__attribute__((noipa)) void leak(size_t size) { kept = malloc(size); }

__attribute__((noipa)) void from_go(size_t size) {
    leak(size);
    __asm__ volatile("");
}
*/
import "C"

import (
	"bufio"
	"fmt"
	"os"
	"runtime"
)

//go:noinline
func calls(size int) { C.from_go(C.size_t(size)) }

//go:noinline
func callsFirst() { calls(801) }

//go:noinline
func callsElsewhere(done chan bool) {
	runtime.LockOSThread()
	calls(802)
	done <- true
}

func main() {
	input := bufio.NewReader(os.Stdin)
	fmt.Printf(`{"pid":%d,"expect":{"leaks":[{"function":"leak","api":"malloc","kind":"native","objects":2,"bytes":1603}]}}`+"\n", os.Getpid())
	input.ReadString('\n')
	callsFirst()
	done := make(chan bool)
	go callsElsewhere(done)
	<-done
	fmt.Println("done")
	input.ReadString('\n')
}
