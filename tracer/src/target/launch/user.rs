//! The user who typed `sudo tracer -- COMMAND`: the command is theirs and runs as them.
//!
//! Which databases of users there are, files or a directory service, knows only the C library of the system. The packed
//! tracer is linked statically and may not load parts of another C library, so the system's own programs look up.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use nix::unistd::{Gid, Uid, setgid, setgroups, setuid};

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

impl Account {
    /// That of a user; small systems without `getent` have no other database than the file.
    fn of(uid: Uid) -> Option<Self> {
        let looked_up = output("getent", &["passwd", &uid.to_string()]);
        let lines = looked_up.or_else(|| fs::read_to_string("/etc/passwd").ok())?;
        lines.lines().find_map(|line| Self::of_line(line, uid))
    }

    /// From `name:password:uid:gid:comment:home:shell`, if the line is the user's (passwd(5)).
    fn of_line(line: &str, uid: Uid) -> Option<Self> {
        let mut fields = line.split(':');
        let name = fields.next().filter(|name| !name.is_empty())?;
        let is_theirs = fields.nth(1)?.parse() == Ok(uid.as_raw());
        let home = fields.nth(2)?;
        is_theirs.then(|| Self { name: name.to_owned(), home: home.into() })
    }

    /// The groups that the user is a member of; none when they cannot be looked up.
    fn groups(&self) -> Vec<Gid> {
        let numbers = output("id", &["-G", "--", &self.name]).unwrap_or_default();
        numbers.split_whitespace().filter_map(|number| number.parse().ok()).map(Gid::from_raw).collect()
    }
}

/// What a program prints, if it is there and succeeds.
fn output(program: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program).args(arguments).stdin(Stdio::null()).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
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
        let account = Account::of(uid);
        let mut groups = account.as_ref().map_or_else(Vec::new, Account::groups);
        if !groups.contains(&gid) {
            groups.insert(0, gid);
        }
        Some(Self { uid, gid, groups, account })
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
    fn a_line_of_the_database_is_of_one_user() {
        let of_line = |line| Account::of_line(line, Uid::from_raw(33));
        let account = Account { name: "www".to_owned(), home: "/var/www".into() };
        assert_eq!(of_line("www:x:33:44:Web, server:/var/www:/bin/sh"), Some(account.clone()));
        assert_eq!(of_line("www:x:33:44::/var/www:"), Some(account));
        for other in ["www:x:34:33::/var/www:/bin/sh", "33", "", "www:x:33", ":x:33:44::/:/bin/sh", "+::::::"]
        {
            assert_eq!(of_line(other), None, "{other}");
        }
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
