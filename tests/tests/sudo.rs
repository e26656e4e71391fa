//! `sudo tracer -- COMMAND` by an ordinary user: the command is theirs, and so are the reports.

use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt, chown},
    path::PathBuf,
    process::Command,
};

use tempfile::TempDir;
use tracer_tests::{Tracer, run_tool, tracer_binary};

/// A user who may call the tracer by sudo, and nothing else; gone when dropped.
struct User {
    name: String,
    uid: u32,
    gid: u32,
    rule: PathBuf,
}

impl User {
    #[track_caller]
    fn new() -> Self {
        let name = format!("tracer{}", std::process::id());
        let home = format!("/nonexistent/{name}");
        run_tool(
            "useradd",
            &["--no-create-home", "--user-group", "--groups", "games", "--home-dir", &home, &name],
        );
        let number = |option| run_tool("id", &[option, &name]).trim().parse().expect("a number");
        let user = Self {
            uid: number("-u"),
            gid: number("-g"),
            rule: format!("/etc/sudoers.d/{name}").into(),
            name,
        };
        let tracer = tracer_binary().canonicalize().expect("it is there");
        fs::write(&user.rule, format!("{} ALL=(root) NOPASSWD: {}\n", user.name, tracer.display()))
            .expect("sudo has its directory");
        fs::set_permissions(&user.rule, fs::Permissions::from_mode(0o440)).expect("it is ours");
        user
    }

    /// What comes before the tracer's own words on the user's command line.
    fn sudo(&self) -> Vec<String> {
        let (uid, gid) = (format!("--reuid={}", self.uid), format!("--regid={}", self.gid));
        ["setpriv".into(), uid, gid, "--init-groups".into(), "sudo".into(), "-n".into(), "--".into()].into()
    }
}

impl Drop for User {
    fn drop(&mut self) {
        // There is nobody to tell about a failure.
        let _ = fs::remove_file(&self.rule);
        let _ = Command::new("userdel").arg(&self.name).output();
    }
}

#[test]
fn the_command_and_the_reports_are_the_callers() {
    let user = User::new();
    let directory = TempDir::new().expect("a temporary directory");
    chown(directory.path(), Some(user.uid), Some(user.gid)).expect("we are root");
    let report = directory.path().join("report.json");
    let tracer = || {
        let binary = tracer_binary().canonicalize().expect("it is there");
        Tracer::new().through(user.sudo()).binary(binary).output(&report)
    };
    let script = "id -u; id -g; id -Gn; echo $HOME; echo $USER; echo $LOGNAME; exit 5";
    let finished = tracer().launch(["sh", "-c", script]).run();
    assert_eq!(finished.status.code(), Some(5), "{finished:#?}");
    let report_of_run = finished.report_despite_status();
    report_of_run.assert_exact();
    let said: Vec<_> = finished.stdout.iter().take(6).map(String::as_str).collect();
    let [uid, gid, groups, home, name, login] = said[..] else { panic!("{finished:#?}") };
    assert_eq!([uid, gid], [user.uid.to_string(), user.gid.to_string()]);
    let mut groups: Vec<_> = groups.split(' ').collect();
    groups.sort_unstable();
    assert_eq!(groups, ["games", &user.name]);
    assert_eq!([home, name, login], [&format!("/nonexistent/{}", user.name), &user.name, &user.name]);

    let owner = fs::metadata(&report).expect("it was written");
    assert_eq!((owner.uid(), owner.gid()), (user.uid, user.gid), "the report is the caller's");
    fs::write(&report, "").expect("it can be replaced");
    chown(&report, Some(0), Some(0)).expect("we are root");
    let finished = tracer().options(["--as-root"]).launch(["id", "-u"]).run();
    assert_eq!(finished.stdout[0], "0", "{finished:#?}");
    let owner = fs::metadata(&report).expect("it was written");
    assert_eq!((owner.uid(), owner.gid()), (0, 0), "what is replaced keeps its owner");
}
