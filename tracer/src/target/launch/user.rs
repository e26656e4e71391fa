//! The user who typed `sudo tracer -- COMMAND`: the command is theirs and runs as them.

use std::ffi::{CString, OsStr};
use std::io;
use std::path::PathBuf;

use nix::unistd::{Gid, Uid, User, getgrouplist, setgid, setgroups, setuid};

/// Who runs the command, when it is not who runs the tracer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct InvokingUser {
    uid: Uid,
    gid: Gid,
    groups: Vec<Gid>,
    /// Unknown when the user database has no entry.
    pub account: Option<Account>,
}

/// What the user database says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Account {
    pub name: String,
    pub home: PathBuf,
}

/// User and group of who called sudo; `None` when nobody did, or we are not root.
#[must_use]
pub fn caller_of_sudo() -> Option<(u32, u32)> {
    let number = |name| std::env::var(name).ok()?.parse().ok();
    if !Uid::effective().is_root() {
        return None;
    }
    Some((number("SUDO_UID")?, number("SUDO_GID")?))
}

impl InvokingUser {
    /// Who called sudo; `None` when nobody did, or root did, or we are not root.
    pub(super) fn of_sudo() -> Option<Self> {
        let (uid, gid) = caller_of_sudo()?;
        Self::from_numbers(uid.to_string().as_ref(), gid.to_string().as_ref())
    }

    pub(super) fn from_numbers(uid: &OsStr, gid: &OsStr) -> Option<Self> {
        let number = |text: &OsStr| text.to_str()?.parse().ok();
        let (uid, gid) = (Uid::from_raw(number(uid)?), Gid::from_raw(number(gid)?));
        if uid.is_root() {
            return None;
        }
        let user = User::from_uid(uid).ok().flatten();
        let name = user.as_ref().and_then(|user| CString::new(user.name.as_str()).ok());
        let groups = name.and_then(|name| getgrouplist(&name, gid).ok()).unwrap_or_else(|| vec![gid]);
        Some(Self { uid, gid, groups, account: user.map(|user| Account { name: user.name, home: user.dir }) })
    }

    /// Makes this process the user's, for good. May be called between `fork` and `exec`: it allocates nothing.
    pub(super) fn become_user(&self) -> io::Result<()> {
        setgroups(&self.groups)?;
        setgid(self.gid)?;
        setuid(self.uid)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_user_database_names_home_and_groups() {
        let user = InvokingUser::from_numbers("1".as_ref(), "1".as_ref()).expect("a user");
        assert_eq!(user.account.map(|account| account.name).as_deref(), Some("daemon"));
        assert!(user.groups.contains(&Gid::from_raw(1)));
    }

    #[test]
    fn root_and_nonsense_are_nobody_else() {
        for (uid, gid) in [("0", "0"), ("", "1"), ("-1", "1"), ("x", "1"), ("1", "99999999999")] {
            assert_eq!(InvokingUser::from_numbers(uid.as_ref(), gid.as_ref()), None);
        }
    }

    #[test]
    fn a_user_without_an_entry_keeps_the_group() {
        let user = InvokingUser::from_numbers("3999999".as_ref(), "3999998".as_ref()).expect("a user");
        assert_eq!((user.account, user.groups), (None, vec![Gid::from_raw(3_999_998)]));
    }
}
