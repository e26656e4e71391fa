//! The kernel that this runs on.

/// The oldest that tracer has been tried on, and has all that it needs.
const OLDEST: (u32, u32) = (6, 1);

/// A kernel that is too old.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("Linux {release} is too old: tracer {}", self.remedy())]
pub struct TooOld {
    release: String,
}

impl TooOld {
    /// What it takes.
    #[must_use]
    pub const fn remedy(&self) -> &'static str {
        "needs Linux 6.1 or later"
    }
}

/// A kernel that is locked down for confidentiality, as Secure Boot can have it: not even root may look into it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the kernel is locked down (confidentiality) and lets no BPF program read memory: {}", self.remedy())]
pub struct Confidential;

impl Confidential {
    /// What can be done.
    #[must_use]
    pub const fn remedy(self) -> &'static str {
        "boot with lockdown=integrity or without Secure Boot"
    }
}

/// How far the kernel is locked down, where that can be read: `none [integrity] confidentiality`.
#[must_use]
pub fn lockdown() -> Option<String> {
    std::fs::read_to_string("/sys/kernel/security/lockdown").ok()
}

/// Whether a kernel that is locked down so far lets BPF programs read memory. Of one that does not say it is left to the rest to find
/// out.
///
/// # Errors
/// When it does not.
pub fn check_lockdown(modes: Option<&str>) -> Result<(), Confidential> {
    if modes.is_some_and(|modes| modes.contains("[confidentiality]")) { Err(Confidential) } else { Ok(()) }
}

/// The profile of AppArmor that this process is kept within, as a container's is.
#[must_use]
pub fn profile() -> Option<String> {
    // Where another security module has this file, or none, AppArmor's own may be there or not.
    let labels = ["/proc/self/attr/apparmor/current", "/proc/self/attr/current"];
    let label = labels.iter().find_map(|label| std::fs::read_to_string(label).ok())?;
    enforced(&label).map(str::to_owned)
}

/// The name of the profile in AppArmor's label of a process, if it forbids anything.
fn enforced(label: &str) -> Option<&str> {
    label.trim_end_matches(['\n', '\0']).strip_suffix(" (enforce)")
}

/// The running kernel's release, as `uname -r` gives it.
#[must_use]
pub fn release() -> String {
    rustix::system::uname().release().to_string_lossy().into_owned()
}

/// Whether a kernel of this release is new enough. Of one that states no numbers it is left to the rest to find out.
///
/// # Errors
/// When it is not.
pub fn check(release: &str) -> Result<(), TooOld> {
    let mut numbers =
        release.split(|letter: char| !letter.is_ascii_digit()).map_while(|number| number.parse().ok());
    match (numbers.next(), numbers.next()) {
        (Some(major), Some(minor)) if (major, minor) < OLDEST => Err(TooOld { release: release.to_owned() }),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_before_the_oldest_are_too_old() {
        for good in ["6.18.44-fc-v769", "6.1", "6.1.0-rc1", "10.0", "next"] {
            assert_eq!(check(good), Ok(()), "{good}");
        }
        for old in ["6.0.12-generic", "5.10.0-35-amd64", "4.19.0"] {
            let error = check(old).expect_err("it is too old");
            assert_eq!(error.to_string(), format!("Linux {old} is too old: tracer needs Linux 6.1 or later"));
        }
    }

    #[test]
    fn a_profile_is_one_that_forbids() {
        assert_eq!(enforced("docker-default (enforce)\n"), Some("docker-default"));
        for free in ["unconfined\n", "docker-default (complain)\n", "system_u:system_r:container_t:s0\0", ""]
        {
            assert_eq!(enforced(free), None, "{free}");
        }
    }

    #[test]
    fn a_kernel_that_hides_memory_is_told() {
        for good in
            [None, Some("[none] integrity confidentiality\n"), Some("none [integrity] confidentiality\n")]
        {
            assert_eq!(check_lockdown(good), Ok(()));
        }
        let error = check_lockdown(Some("none integrity [confidentiality]\n")).expect_err("it hides memory");
        assert!(error.to_string().contains("boot with lockdown=integrity"), "{error}");
    }
}
