//! The library that samples inside of a process, and a listener to its probes that is not tracer.

use std::{
    ffi::CString,
    fs, io,
    os::{
        fd::{FromRawFd as _, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::{Path, PathBuf},
    process::Command,
    sync::LazyLock,
};

use tempfile::TempDir;

/// The library, built as `cargo sampler` builds it.
#[track_caller]
#[must_use]
pub fn sampler() -> &'static Path {
    static LIBRARY: LazyLock<PathBuf> = LazyLock::new(build);
    &LIBRARY
}

fn build() -> PathBuf {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| workspace.join("target"), PathBuf::from);
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    // Options of the alias end with those of the compiler, so where it builds is said by the environment.
    cargo.arg("sampler").current_dir(&workspace).env("CARGO_TARGET_DIR", &target);
    let result = cargo.output().unwrap_or_else(|error| panic!("{cargo:?} cannot be run: {error}"));
    assert!(result.status.success(), "{cargo:?} failed:\n{}", String::from_utf8_lossy(&result.stderr));
    let library = target.join("sampler/libtracer_sampler.so");
    library.canonicalize().unwrap_or_else(|error| panic!("{}: {error}", library.display()))
}

/// Listens to the probes of a copy of the library, in every process, until it is dropped: the kernel counts up the semaphores. Of a
/// copy, so that nobody else is sampled meanwhile.
#[derive(Debug)]
pub struct Listener {
    directory: TempDir,
    _probes: Vec<OwnedFd>,
}

impl Listener {
    /// Begins to listen.
    #[track_caller]
    #[must_use]
    pub fn to_the_sampler() -> Self {
        let directory = TempDir::new().expect("the directory for temporary files is writable");
        let library = copy_in(&directory);
        fs::copy(sampler(), &library).expect("it can be copied");
        let notes = Command::new("readelf").args(["--notes", "--wide"]).arg(sampler()).output();
        let notes = String::from_utf8(notes.expect("readelf is installed").stdout).expect("it is text");
        // No page of the library is in two segments, and in each the address is the offset in the file.
        let number = |text: &str| {
            u64::from_str_radix(text.trim().trim_start_matches("0x"), 16).expect("readelf writes numbers")
        };
        let probes = notes.lines().filter_map(|line| {
            let (place, semaphore) = line.trim().strip_prefix("Location: ")?.split_once(", Base: ")?;
            Some(uprobe(&library, number(place), number(semaphore.split_once("Semaphore: ")?.1)))
        });
        let probes: Vec<_> = probes.collect::<io::Result<_>>().expect("uprobes can be made");
        assert!(probes.len() > 10, "the library has probes: {notes}");
        Self { directory, _probes: probes }
    }

    /// The copy.
    #[must_use]
    pub fn library(&self) -> PathBuf {
        copy_in(&self.directory)
    }
}

fn copy_in(directory: &TempDir) -> PathBuf {
    directory.path().join("libtracer_sampler.so")
}

/// A probe of the library, in every process.
fn uprobe(library: &Path, offset: u64, semaphore: u64) -> io::Result<OwnedFd> {
    /// `struct perf_event_attr` up to `config2`.
    #[repr(C)]
    #[derive(Default)]
    struct Event {
        event_type: u32,
        size: u32,
        config: u64,
        unused: [u64; 3],
        flags: u64,
        more: [u32; 2],
        config1: u64,
        config2: u64,
    }
    let event_type = fs::read_to_string("/sys/bus/event_source/devices/uprobe/type")?;
    let path = CString::new(library.as_os_str().as_bytes()).expect("no path has a zero");
    let event = Event {
        event_type: event_type.trim().parse().map_err(io::Error::other)?,
        size: size_of::<Event>() as u32,
        config: semaphore << 32,
        config1: path.as_ptr() as u64,
        config2: offset,
        ..Event::default()
    };
    // SAFETY: the attributes are as long as they say, and the path outlives the call.
    let fd = unsafe { libc::syscall(libc::SYS_perf_event_open, &raw const event, -1, 0, -1, 8) };
    let fd = i32::try_from(fd).ok().filter(|&fd| fd >= 0).ok_or_else(io::Error::last_os_error)?;
    // SAFETY: the kernel has just given it to us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
