//! Servers that nobody wrote for these tests.

use std::{
    fs,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};

use crate::process::wait_until;

/// A server that is ended when dropped.
#[derive(Debug)]
pub struct Server {
    child: Child,
    socket: PathBuf,
}

impl Server {
    /// Starts it and waits until its socket takes connections.
    #[track_caller]
    #[must_use]
    pub fn start(mut command: Command, socket: &Path) -> Self {
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = command.spawn().unwrap_or_else(|error| panic!("{command:?} cannot be run: {error}"));
        let server = Self { child, socket: socket.to_owned() };
        wait_until("the server takes connections", || UnixStream::connect(socket).ok());
        server
    }

    /// A Redis in this directory.
    #[track_caller]
    #[must_use]
    pub fn redis(directory: &Path) -> Self {
        let socket = directory.join("redis.socket");
        let mut command = Command::new("redis-server");
        command.args(["--port", "0", "--save", "", "--dir"]).arg(directory).arg("--unixsocket").arg(&socket);
        Self::start(command, &socket)
    }

    /// An nginx in this directory, which answers everything with what it was asked for.
    #[track_caller]
    #[must_use]
    pub fn nginx(directory: &Path, processes: &str) -> Self {
        let socket = directory.join("nginx.socket");
        let configuration = format!(
            "user root; daemon off; {processes}; pid nginx.pid; error_log stderr; events {{}} http {{ access_log off; \
             client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path fastcgi; uwsgi_temp_path uwsgi; \
             scgi_temp_path scgi; server {{ listen unix:{}; location / {{ return 200 $uri; }} }} }}",
            socket.display()
        );
        fs::write(directory.join("nginx.conf"), configuration).expect("there is room");
        let mut command = Command::new("nginx");
        command.arg("-p").arg(directory).args(["-e", "stderr", "-c", "nginx.conf"]);
        Self::start(command, &socket)
    }

    /// A PostgreSQL in this directory, of which everybody may be anybody.
    #[track_caller]
    #[must_use]
    pub fn postgres(directory: &Path) -> Self {
        let versions =
            fs::read_dir("/usr/lib/postgresql").expect("PostgreSQL is installed (`cargo xtask setup`)");
        let version = versions.flatten().next().expect("PostgreSQL is installed").path();
        // It does not run as root.
        let as_itself = |program: &str| {
            let mut command = Command::new("setpriv");
            command.args(["--reuid=postgres", "--regid=postgres", "--init-groups"]);
            command.arg(version.join("bin").join(program)).arg("-D").arg(directory.join("data"));
            command
        };
        let status = Command::new("chown").arg("postgres").arg(directory).status();
        assert!(status.is_ok_and(|status| status.success()), "the directory becomes its own");
        let made =
            as_itself("initdb").args(["--auth=trust", "--no-sync"]).output().expect("initdb can be run");
        assert!(made.status.success(), "{made:?}");
        let mut command = as_itself("postgres");
        command.arg("-k").arg(directory).args(["-c", "listen_addresses=", "-c", "logging_collector=off"]);
        Self::start(command, &directory.join(".s.PGSQL.5432"))
    }

    /// Its pid; of several processes, the first one's.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Where it listens.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.socket
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // When it is asked to, it ends its workers, too. It may have ended already; there is nobody to tell about it.
        let _ = kill_process(Pid::from_child(&self.child), Signal::TERM);
        let deadline = Instant::now() + Duration::from_secs(10);
        while self.child.try_wait().is_ok_and(|status| status.is_none()) && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(5));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
