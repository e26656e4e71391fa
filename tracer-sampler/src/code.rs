//! The machine code that the functions in front of the allocator's consist of, and the probes in it.
//!
//! It is machine code, because all of it must leave no frame where the allocator throws an exception or the caller walks its
//! stack: what is not sampled ends in a jump to the allocator, as if this library were not there. What may be sampled calls it from a
//! frame that the unwind tables describe, and that no exception stops at.
//!
//! Each function has probes of its own, so that a tracer knows by the place which function was called. The instruction under a probe
//! is a `nop` of two bytes: one of five is replaced by a call when it is probed (Linux 6.18), which kills forked children.

/// The probe's place, with a note: name, and where its arguments are.
macro_rules! probe {
    ($name:literal, $arguments:literal) => {
        concat!(
            "990: .byte 0x66, 0x90\n",
            ".pushsection .note.stapsdt,\"\",\"note\"\n",
            ".balign 4\n",
            ".4byte 992f - 991f, 994f - 993f, 3\n",
            "991: .asciz \"stapsdt\"\n",
            "992: .balign 4\n",
            "993: .8byte 990b\n",
            ".8byte _.stapsdt.base\n",
            ".8byte otel_memory_",
            $name,
            "_semaphore\n",
            ".asciz \"otel_memory\"\n",
            ".asciz \"",
            $name,
            "\"\n",
            ".asciz \"",
            $arguments,
            "\"\n",
            "994: .balign 4\n",
            ".popsection\n",
        )
    };
}

/// Room for a [`call::Call`](crate::call::Call) on the stack, below the arguments; then the call, with `before` and `after`, and the
/// probe.
macro_rules! sampled_call {
    ($released:expr) => {
        concat!(
            "push rdx\n.cfi_adjust_cfa_offset 8\n",
            "push rsi\n.cfi_adjust_cfa_offset 8\n",
            "push rdi\n.cfi_adjust_cfa_offset 8\n",
            "sub rsp, 64\n.cfi_adjust_cfa_offset 64\n",
            current_thread!(),
            "mov qword ptr [rsp + {thread}], rax\n",
            "mov rdi, rsp\n",
            "call {before}\n",
            $released,
            "mov rdi, qword ptr [rsp + 64]\n",
            "mov rsi, qword ptr [rsp + 72]\n",
            "mov rdx, qword ptr [rsp + 80]\n",
            "call qword ptr [rip + {next}]\n",
            "mov qword ptr [rsp + {result}], rax\n",
            "mov rdi, rsp\n",
            "call {after}\n",
            "test eax, eax\n",
            "je 4f\n",
            "mov rdi, qword ptr [rsp + {block}]\n",
            "mov rsi, qword ptr [rsp + {size}]\n",
            "mov rdx, qword ptr [rsp + {weight}]\n",
            probe!("alloc", "8@%rdi 8@%rsi 8@%rdx"),
            "4: mov rax, qword ptr [rsp + {result}]\n",
            "add rsp, 88\n.cfi_adjust_cfa_offset -88\n",
            "ret\n",
        )
    };
}

/// The release of an old block is told, if `before` says so.
macro_rules! released_block {
    () => {
        concat!(
            "test eax, eax\n",
            "je 5f\n",
            "mov rdi, qword ptr [rsp + 64]\n",
            probe!("free", "8@%rdi"),
            "5:\n"
        )
    };
}

/// Functions that may call others of the family, which must not be counted then.
macro_rules! outermost {
    ($($function:ident = $name:literal, $next:ident, $before:ident, $after:ident;)*) => {$(
        /// Stands in front of the allocator's function of this name.
        #[unsafe(naked)]
        #[unsafe(export_name = $name)]
        pub unsafe extern "C" fn $function() {
            core::arch::naked_asm!(
                ".cfi_startproc",
                "cmp word ptr [rip + otel_memory_alloc_semaphore], 0",
                "jne 3f",
                "jmp qword ptr [rip + {next}]",
                "3:",
                sampled_call!(""),
                ".cfi_endproc",
                next = sym $next,
                before = sym $before,
                after = sym $after,
                thread = const core::mem::offset_of!($crate::call::Call, thread),
                result = const core::mem::offset_of!($crate::call::Call, result),
                block = const core::mem::offset_of!($crate::call::Call, block),
                size = const core::mem::offset_of!($crate::call::Call, size),
                weight = const core::mem::offset_of!($crate::call::Call, weight),
            )
        }
    )*};
}

/// Functions that release a block, too. They go straight to the allocator if nobody looks and no block is sampled.
macro_rules! resize {
    ($($function:ident = $name:literal, $next:ident, $before:ident;)*) => {$(
        /// Stands in front of the allocator's function of this name.
        #[unsafe(naked)]
        #[unsafe(export_name = $name)]
        pub unsafe extern "C" fn $function() {
            core::arch::naked_asm!(
                ".cfi_startproc",
                "cmp word ptr [rip + otel_memory_alloc_semaphore], 0",
                "jne 3f",
                "cmp qword ptr [rip + {set} + {count}], 0",
                "jne 3f",
                "jmp qword ptr [rip + {next}]",
                "3:",
                sampled_call!(released_block!()),
                ".cfi_endproc",
                set = sym $crate::call::SAMPLED,
                count = const core::mem::offset_of!($crate::set::Set, count),
                next = sym $next,
                before = sym $before,
                after = sym $crate::call::after_realloc,
                thread = const core::mem::offset_of!($crate::call::Call, thread),
                result = const core::mem::offset_of!($crate::call::Call, result),
                block = const core::mem::offset_of!($crate::call::Call, block),
                size = const core::mem::offset_of!($crate::call::Call, size),
                weight = const core::mem::offset_of!($crate::call::Call, weight),
            )
        }
    )*};
}

/// Functions that release the block that is their first argument.
macro_rules! release {
    ($($function:ident = $name:literal, $next:ident;)*) => {$(
        /// Stands in front of the allocator's function of this name.
        #[unsafe(naked)]
        #[unsafe(export_name = $name)]
        pub unsafe extern "C" fn $function() {
            core::arch::naked_asm!(
                ".cfi_startproc",
                "cmp qword ptr [rip + {set} + {count}], 0",
                "je 2f",
                "imul r11d, edi, {factor}",
                "shr r11d, 16",
                "lea r10, [rip + {set} + {filter}]",
                "cmp byte ptr [r10 + r11], 0",
                "jne 3f",
                "2: jmp qword ptr [rip + {next}]",
                "3:",
                "push rdx\n.cfi_adjust_cfa_offset 8",
                "push rsi\n.cfi_adjust_cfa_offset 8",
                "push rdi\n.cfi_adjust_cfa_offset 8",
                "call {before}",
                "mov rdi, qword ptr [rsp]",
                "test eax, eax",
                "je 4f",
                probe!("free", "8@%rdi"),
                "4: pop rdi\n.cfi_adjust_cfa_offset -8",
                "pop rsi\n.cfi_adjust_cfa_offset -8",
                "pop rdx\n.cfi_adjust_cfa_offset -8",
                "jmp qword ptr [rip + {next}]",
                ".cfi_endproc",
                set = sym $crate::call::SAMPLED,
                count = const core::mem::offset_of!($crate::set::Set, count),
                filter = const core::mem::offset_of!($crate::set::Set, filter),
                factor = const $crate::set::FILTER_FACTOR as i32,
                next = sym $next,
                before = sym $crate::call::before_free,
            )
        }
    )*};
}
