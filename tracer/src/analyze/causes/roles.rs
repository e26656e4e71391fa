//! What a function is to the memory that is allocated below it: data, and the rules that read it.
//!
//! A function that allocates for its caller is nobody to blame. Some do so by their name, wherever they stand ([`WRAPPERS`]); others
//! belong to a library or a runtime ([`FAMILIES`]), and are passed over when somebody else called it.

use crate::model::Frame;

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// Allocates for its caller. One of a language is `quiet`: that it was called says nothing.
    Wrapper { quiet: bool },
    /// Belongs to a library or a runtime, by its place in [`FAMILIES`].
    Member(usize),
    /// Runs the program's own code: the loop of an interpreter, a way from it to native code, compiled code without a name.
    Interpreter,
    /// Begins a program or a thread, or waits for events: everything is below it.
    Base,
    /// The program's own.
    Own,
}

impl Role {
    #[must_use]
    pub fn of(frame: &Frame) -> Self {
        let module = frame.module.as_deref().unwrap_or_default();
        let is_compiled = frame.language.as_deref() == Some("jit") || is_no_file(module);
        let Some(function) = frame.function.as_deref() else {
            return match (is_compiled, begins(module, QUIET_MODULES)) {
                (true, _) => Self::Interpreter,
                (_, true) => Self::Wrapper { quiet: true },
                _ => family_of_module(module).map_or(Self::Own, Self::Member),
            };
        };
        let name = name_of(function);
        if BASES.contains(&name) || name.ends_with("::main") || begins(name, BASE_BEGINNINGS) {
            Self::Base
        } else if begins(name, INTERPRETERS) || (is_compiled && begins(name, COMPILED_INTERPRETERS)) {
            Self::Interpreter
        } else if begins(module, QUIET_MODULES) {
            Self::Wrapper { quiet: !begins(module, LIBC) || name.starts_with('_') }
        } else if is_of_language(name) {
            Self::Wrapper { quiet: true }
        } else if begins(name, WRAPPERS) || (is_of_library(module) && begins(name, WRAPPERS_OF_LIBRARIES)) {
            Self::Wrapper { quiet: false }
        } else {
            family_of(module, name, is_compiled).map_or(Self::Own, Self::Member)
        }
    }
}

fn begins(text: &str, beginnings: &[&str]) -> bool {
    beginnings.iter().any(|beginning| text.starts_with(beginning))
}

/// Whether code is in no file: compiled as the program runs.
fn is_no_file(module: &str) -> bool {
    module.is_empty() || (module.starts_with('[') && module != "[vdso]") || module.starts_with("memfd:")
}

fn is_of_library(module: &str) -> bool {
    module.contains(".so")
}

/// C libraries and what loads them.
const LIBC: &[&str] = &["libc.so", "libc-2", "ld-linux", "ld-musl", "ld-2"];

/// Modules all of whose functions work for their callers.
const QUIET_MODULES: &[&str] = &[
    "libc.so",
    "libc-2",
    "ld-linux",
    "ld-musl",
    "ld-2",
    "libpthread",
    "libdl.so",
    "libstdc++.so",
    "libc++.so",
    "libc++abi.so",
    "libgcc_s.so",
    "libffi.so",
];

/// Where programs and threads begin, and what waits for events. A `main` that allocates itself is blamed all the same.
const BASES: &[&str] = &[
    "main",
    "_start",
    "start_thread",
    "clone",
    "clone3",
    "thread_start",
    "uv_run",
    "uv__io_poll",
    "ev_run",
    "event_base_loop",
    "g_main_loop_run",
    "g_main_context_iteration",
    "g_main_context_dispatch",
    "aeMain",
    "aeProcessEvents",
    "runtime.goexit",
    "runtime.main",
    "runtime.mcall",
    "java_start",
    "JavaMain",
    "ThreadJavaMain",
    "CallJavaMainInNewThread",
    "thread_native_entry",
    "node::SpinEventLoop",
    "node::Start",
    "node::InternalMakeCallback",
    "ruby_run_node",
    "ruby_exec_node",
    "rb_ec_exec_node",
    "do_cli",
    "fpm_run",
    "perl_run",
    "node::LoadEnvironment",
    "node::NodeMainInstance::Run",
    "coreclr_execute_assembly",
    "Py_RunMain",
    "Py_BytesMain",
];
const BASE_BEGINNINGS: &[&str] = &[
    "__libc_start",
    "__clone",
    "std::rt::lang_start",
    "std::sys::backtrace::__rust_begin_short_backtrace",
    "std::panicking::",
    "std::panic::",
    "std::thread::",
    "std::sys::thread",
    "std::sys::pal",
    "uv__run_",
    "uv__stream_io",
];

/// The loops of interpreters, and how they come to functions of C.
const INTERPRETERS: &[&str] = &[
    // CPython
    "_PyEval_",
    "PyEval_Eval",
    "_PyFunction_Vectorcall",
    "cfunction_",
    "_PyObject_MakeTpCall",
    "_PyObject_Vectorcall",
    "PyObject_Vectorcall",
    "PyObject_Call",
    "_PyObject_Call",
    "method_vectorcall",
    "slot_tp_",
    "type_call",
    "py::",
    // V8
    "Builtins_",
    "v8::internal::Execution::",
    "v8::internal::(anonymous namespace)::Invoke",
    "v8::Function::Call",
    "v8::internal::Builtin_",
    "v8::internal::FunctionCallbackArguments::Call",
    "v8::internal::(anonymous namespace)::HandleApiCallHelper",
    "v8impl::(anonymous namespace)::FunctionCallbackWrapper",
    // HotSpot
    "JavaCalls::",
    "JavaThread::",
    "jni_Call",
    // Ruby
    "rb_vm_exec",
    "vm_exec",
    "vm_call_",
    "vm_sendish",
    "rb_vm_call",
    "rb_funcall",
    // PHP
    "execute_ex",
    "zend_execute",
    "php_execute_script",
    "zend_call_function",
    // Perl, Lua
    "Perl_runops_",
    "luaV_execute",
    "luaD_",
    "lua_pcall",
    // BEAM, Mono
    "process_main",
    "mono_jit_",
    "mono_runtime_",
];
const COMPILED_INTERPRETERS: &[&str] =
    &["Interpreter", "call_stub", "StubRoutines", "[java]", "[virtual thread"];

/// Libraries of languages: their functions work for whoever instantiated them.
fn is_of_language(name: &str) -> bool {
    const BEGINNINGS: &[&str] = &[
        // C++
        "std::",
        "__gnu_cxx::",
        "operator new",
        "absl::",
        "boost::container::",
        "fmt::",
        // C++ for runtimes: headers only
        "Napi::",
        "Nan::",
        "pybind11::",
        "nanobind::",
        // Rust
        "alloc::",
        "core::",
        "hashbrown::",
        "__rust",
        "__rdl_",
        "__rg_",
        "smallvec::",
        "bytes::",
        // HotSpot
        "os::malloc",
        "os::realloc",
        "os::strdup",
        // Go
        "runtime.mallocgc",
        "runtime.newobject",
        "runtime.makeslice",
        "runtime.growslice",
    ];
    // Rust's implementations of its library's traits: `<T as alloc::vec::spec_from_elem::SpecFromElem>::from_elem`.
    let inner = name.trim_start_matches(['<', '&', '(', '[']);
    begins(inner, BEGINNINGS)
        || name.starts_with('<')
            && [" as alloc::", " as core::", " as std::", " as hashbrown::"].iter().any(|trait_| {
                let type_ = inner.split(trait_).next().unwrap_or_default();
                // What the program implements itself is the program's.
                type_.len() < inner.len() && (!type_.contains("::") || begins(type_, BEGINNINGS))
            })
}

/// Functions that allocate for their callers, by the beginnings of their names.
const WRAPPERS: &[&str] = &[
    // What many call theirs
    "xmalloc",
    "xcalloc",
    "xrealloc",
    "xstrdup",
    "xzalloc",
    "xmemdup",
    "safe_malloc",
    "safe_calloc",
    "safe_realloc",
    "checked_malloc",
    "my_malloc",
    "my_realloc",
    "my_strdup",
    "mem_alloc",
    "mem_calloc",
    "malloc",
    "calloc",
    "realloc",
    "strdup",
    "strndup",
    // jemalloc, mimalloc, tcmalloc under prefixes
    "je_",
    "mi_",
    "tc_",
    "_rjem_",
    "rpmalloc",
    "scalable_",
    // OpenSSL, BoringSSL, NSS, mbed TLS, GnuTLS
    "CRYPTO_malloc",
    "CRYPTO_zalloc",
    "CRYPTO_calloc",
    "CRYPTO_realloc",
    "CRYPTO_clear_realloc",
    "CRYPTO_strdup",
    "CRYPTO_strndup",
    "CRYPTO_memdup",
    "OPENSSL_malloc",
    "OPENSSL_zalloc",
    "OPENSSL_realloc",
    "OPENSSL_strdup",
    "PORT_Alloc",
    "PORT_ZAlloc",
    "PORT_Arena",
    "PR_Malloc",
    "PR_Calloc",
    "mbedtls_calloc",
    "gnutls_malloc",
    "gnutls_calloc",
    // GLib
    "g_malloc",
    "g_realloc",
    "g_try_",
    "g_slice_alloc",
    "g_slice_copy",
    "g_strdup",
    "g_strndup",
    "g_memdup",
    "g_new",
    // libxml2, libxslt, expat, libcurl, SQLite, zlib, zstd, nghttp2, libevent, libuv
    "xmlMalloc",
    "xmlMemMalloc",
    "xmlRealloc",
    "xmlMemStrdup",
    "xmlStrdup",
    "xmlStrndup",
    "Curl_cmalloc",
    "Curl_ccalloc",
    "Curl_cstrdup",
    "Curl_saferealloc",
    "Curl_memdup",
    "curl_maprintf",
    "sqlite3Malloc",
    "sqlite3_malloc",
    "sqlite3Realloc",
    "sqlite3_realloc",
    "sqlite3DbMalloc",
    "sqlite3DbRealloc",
    "sqlite3DbStr",
    "sqlite3MemMalloc",
    "sqlite3MemRealloc",
    "dbMallocRaw",
    "mallocWithAlarm",
    "zcalloc",
    "ZSTD_custom",
    "nghttp2_mem_",
    "nghttp3_mem_",
    "event_mm_",
    "mm_malloc",
    "mm_calloc",
    "uv__malloc",
    "uv__calloc",
    "uv__realloc",
    "uv__strdup",
    "uv__strndup",
    // MuPDF, lexbor, FreeType, cairo, FFmpeg, ImageMagick, libpng, libjpeg, libtiff
    "fz_malloc",
    "fz_calloc",
    "fz_realloc",
    "fz_strdup",
    "fz_alloc",
    "Memento_",
    "lexbor_",
    "ft_mem_",
    "FT_Alloc",
    "ft_alloc",
    "_cairo_malloc",
    "av_malloc",
    "av_calloc",
    "av_realloc",
    "av_buffer_alloc",
    "AcquireMagickMemory",
    "AcquireQuantumMemory",
    "AcquireAlignedMemory",
    "png_malloc",
    "png_calloc",
    "jpeg_get_",
    "_TIFFmalloc",
    // nginx, Apache, Redis, PostgreSQL, talloc
    "ngx_alloc",
    "ngx_calloc",
    "ngx_palloc",
    "ngx_pcalloc",
    "ngx_pnalloc",
    "ngx_memalign",
    "ngx_create_pool",
    "apr_palloc",
    "apr_pcalloc",
    "apr_allocator_alloc",
    "apr_pool_create",
    "zmalloc",
    "zrealloc",
    "ztrymalloc",
    "ztrycalloc",
    "ztryrealloc",
    "zstrdup",
    "_sdsnew",
    "sdsnew",
    "sdsempty",
    "sdsdup",
    "palloc",
    "repalloc",
    "MemoryContextAlloc",
    "AllocSetAlloc",
    "pg_malloc",
    "talloc_",
    "_talloc",
    // CPython
    "PyMem_",
    "_PyMem_",
    "PyObject_Malloc",
    "PyObject_Calloc",
    "PyObject_Realloc",
    "_PyObject_Malloc",
    "_PyObject_Calloc",
    "_PyObject_Realloc",
    "pymalloc_",
    "allocate_from_new_pool",
    "new_arena",
    "_PyObject_GC_",
    "_PyObject_New",
    "gc_alloc",
    "PyType_GenericAlloc",
    "_PyType_AllocNoTrack",
    "PyUnicode_New",
    // Cython, NumPy
    "__Pyx_",
    "PyDataMem_",
    "default_malloc",
    "default_calloc",
    "default_realloc",
    "npy_alloc_cache",
    "_npy_alloc_cache",
    "PyArray_NewFromDescr_int",
    // protobuf
    "upb_Arena_",
    "_upb_Arena_",
    "upb_global_allocfunc",
    "google::protobuf::Arena::",
    "google::protobuf::internal::ThreadSafeArena",
    "google::protobuf::internal::SerialArena",
    "google::protobuf::internal::AllocateMemory",
    "google::protobuf::internal::ArenaStringPtr",
    // Ruby, PHP, Perl, Lua
    "ruby_xmalloc",
    "ruby_xcalloc",
    "ruby_xrealloc",
    "rb_xmalloc",
    "rb_xcalloc",
    "rb_xrealloc",
    "rb_alloc_tmp_buffer",
    "rb_wb_protected_newobj_of",
    "rb_wb_unprotected_newobj_of",
    "rb_newobj",
    "rb_data_object_",
    "rb_data_typed_object_",
    "rb_gc_malloc",
    "ruby_strdup",
    "objspace_xmalloc",
    "objspace_xcalloc",
    "objspace_xrealloc",
    "rb_gc_impl_malloc",
    "rb_gc_impl_calloc",
    "rb_gc_impl_realloc",
    "_emalloc",
    "_ecalloc",
    "_erealloc",
    "_estrdup",
    "_estrndup",
    "_safe_emalloc",
    "_safe_malloc",
    "_safe_realloc",
    "__zend_malloc",
    "__zend_calloc",
    "__zend_realloc",
    "zend_mm_",
    "zend_string_alloc",
    "Perl_safesys",
    "Perl_sv_grow",
    "Perl_more_bodies",
    "Perl_more_sv",
    "l_alloc",
    "luaM_",
    // HotSpot
    "AllocateHeap",
    "ReallocateHeap",
    "CHeapObj",
    "Arena::",
    // V8, node
    "v8::internal::Malloced",
    "v8::internal::AllocWithRetry",
    "v8::internal::AlignedAlloc",
    "v8::base::Malloc",
    "v8::base::AlignedAlloc",
    "v8::internal::BackingStore::",
    "v8::internal::Heap::AllocateExternalBackingStore",
    "v8::ArrayBuffer::New",
    "v8::internal::JSArrayBuffer::Setup",
    "node::NodeArrayBufferAllocator::",
    "node::ArrayBufferAllocator::",
    "node::Malloc",
    "node::Calloc",
    "node::Realloc",
    "node::UncheckedMalloc",
    "node::UncheckedCalloc",
    "node::UncheckedRealloc",
    "node::mem::NgLibMemoryManager",
    // Arrow, gRPC
    "arrow::AllocateBuffer",
    "arrow::AllocateResizableBuffer",
    "arrow::(anonymous namespace)::MimallocAllocator",
    "arrow::(anonymous namespace)::JemallocAllocator",
    "arrow::(anonymous namespace)::SystemAllocator",
    "arrow::BaseMemoryPoolImpl",
    "gpr_malloc",
    "gpr_zalloc",
    "gpr_realloc",
    "gpr_strdup",
];

/// Those whose names alone could be a program's own.
const WRAPPERS_OF_LIBRARIES: &[&str] = &["mem_", "allocate_", "alloc_"];

/// A library or a runtime.
struct Family {
    /// How the modules begin.
    modules: &'static [&'static str],
    /// How its functions begin where they are linked into another module.
    functions: &'static [&'static str],
    /// How its compiled functions begin.
    compiled: &'static [&'static str],
}

/// Passed over when somebody else called them. Where the one that called is an interpreter's loop, nobody did.
const FAMILIES: &[Family] = &[
    Family {
        modules: &[
            "libcrypto.so",
            "libssl.so",
            "libcrypto-",
            "libssl-",
            "libcrypto3",
            "libssl3",
            "legacy.so",
        ],
        functions: &[
            "CRYPTO_",
            "OPENSSL_",
            "ossl_",
            "OSSL_",
            "ASN1_",
            "asn1_",
            "BUF_MEM_",
            "BIO_",
            "BN_",
            "EVP_",
            "evp_",
            "X509_",
            "x509_",
            "X509V3_",
            "SSL_",
            "PEM_",
            "d2i_",
            "i2d_",
            "c2i_",
            "ERR_",
            "EC_",
            "RSA_",
            "DH_",
            "DSA_",
            "PKCS7_",
            "PKCS12_",
            "CMS_",
            "OCSP_",
            "OBJ_",
            "bwrite_conv",
            "bread_conv",
        ],
        compiled: &[],
    },
    Family { modules: &["libglib-2", "libgobject-2", "libgio-2"], functions: &[], compiled: &[] },
    Family { modules: &["libpython", "python"], functions: &[], compiled: &[] },
    Family {
        modules: &["node", "nodejs", "libnode.so", "electron", "deno", "bun"],
        functions: &["napi_", "v8impl::", "v8::", "node_api_"],
        compiled: &[],
    },
    Family {
        modules: &["libjvm.so", "libjava.so", "libzip.so", "libnio.so", "libnet.so", "libjimage.so"],
        functions: &["JNI_", "jni_", "Unsafe_"],
        compiled: &["java.", "javax.", "jdk.", "sun.", "com.sun."],
    },
    Family { modules: &["libruby", "ruby"], functions: &[], compiled: &[] },
    Family { modules: &["php", "libphp"], functions: &[], compiled: &[] },
    Family { modules: &["libperl.so", "perl"], functions: &[], compiled: &[] },
    Family {
        modules: &["libcoreclr.so", "libclrgc", "libmonosgen", "mono"],
        functions: &[],
        compiled: &["System."],
    },
    Family { modules: &["beam.smp"], functions: &["enif_", "erts_", "driver_"], compiled: &[] },
];

fn family_of_module(module: &str) -> Option<usize> {
    FAMILIES.iter().position(|family| is_module(module, family))
}

/// `python3.11` is one of `python`, `node` one of `node`, `node_stats.node` or `pythonic.so` of neither.
fn is_module(module: &str, family: &Family) -> bool {
    family.modules.iter().any(|&beginning| {
        let is_library = beginning.starts_with("lib") || beginning.contains('.');
        module.strip_prefix(beginning).is_some_and(|rest| {
            is_library || rest.bytes().all(|byte| byte.is_ascii_digit() || b".-dmt".contains(&byte))
        })
    })
}

fn family_of(module: &str, name: &str, is_compiled: bool) -> Option<usize> {
    if is_compiled {
        return FAMILIES.iter().position(|family| begins(name, family.compiled));
    }
    // OpenSSL within node is OpenSSL.
    let of_function = || FAMILIES.iter().position(|family| begins(name, family.functions));
    let linked_in =
        family_of_module(module).is_none_or(|index| !FAMILIES[index].modules[0].starts_with("libcrypto"));
    linked_in.then(of_function).flatten().or_else(|| family_of_module(module))
}

/// A function's name without its parameters and what it returns: `Unsafe.allocateMemory0` of
/// `long jdk.internal.misc.Unsafe.allocateMemory0(long)`.
#[must_use]
pub fn name_of(function: &str) -> &str {
    let name = bare_name(function);
    let mut depth = 0_i32;
    let mut begin = 0;
    for (at, c) in name.char_indices() {
        match c {
            '<' | '(' | '{' | '[' => depth += 1,
            '>' | ')' | '}' | ']' => depth -= 1,
            ' ' if depth == 0 && !name[..at].ends_with("operator") && !name[..at].ends_with(':') => {
                begin = at + 1
            }
            _ => {}
        }
    }
    // What is no declaration has no type before its name: `JS:*handle file.js:3`, `py::f:/srv/a.py`.
    let is_declaration = function.ends_with(')') || function.ends_with("const");
    if is_declaration && begin < name.len() { &name[begin..] } else { name }
}

/// A function's name without its parameters.
#[must_use]
pub fn bare_name(function: &str) -> &str {
    let mut depth = 0_usize;
    for (at, c) in function.char_indices() {
        match c {
            '<' => depth += 1,
            '>' => depth = depth.saturating_sub(1),
            '(' if depth == 0 => {
                let is_name = function[at..].starts_with("(anonymous namespace)")
                    || function[..at].ends_with("operator");
                if !is_name && at > 0 {
                    return &function[..at];
                }
            }
            _ => {}
        }
    }
    function
}
