//! A scratch directory with a configuration, and a daemon that answers from a script.

#![allow(clippy::unwrap_used, reason = "a step that fails is a test that fails")]

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use replicator::admin::{Request, Response};

/// A directory that goes away with the test.
pub(crate) struct Scratch(PathBuf);

static NEXT: AtomicUsize = AtomicUsize::new(0);

const CLUSTER: &str = r#"
config-version = 1
[cluster]
name = "lab"
[node.kvm-a]
address = ["127.0.0.1:7790"]
[node.kvm-b]
address = ["127.0.0.1:7791"]
[node.arb]
role = "arbitrator"
address = ["127.0.0.1:7792"]
[net]
tls = "off"
"#;

impl Scratch {
    pub(crate) fn new() -> Self {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("twinadm-test-{}-{number}", std::process::id());
        let directory = std::env::temp_dir().join(name);
        fs::create_dir_all(directory.join("etc/resources.d")).unwrap();
        fs::create_dir_all(directory.join("run")).unwrap();
        Self(directory)
    }

    /// With a valid cluster of one resource, `vm-web`, whose disk on kvm-a is a sparse file.
    pub(crate) fn with_resource(size: u64) -> Self {
        let scratch = Self::new();
        scratch.write("etc/twinblk.toml", CLUSTER);
        scratch.write(
            "etc/resources.d/vm-web.toml",
            scratch.resource("size = \"4MiB\""),
        );
        scratch.sparse("a.img", size);
        scratch
    }

    pub(crate) fn resource(&self, size: &str) -> String {
        let at = self.0.display();
        format!(
            "[resource.vm-web]\n[[resource.vm-web.volume]]\nid = 0\n{size}\n\
             disk = {{ kvm-a = \"{at}/a.img\", kvm-b = \"{at}/b.img\" }}\n\
             meta = {{ kvm-a = \"{at}/a.md\", kvm-b = \"{at}/b.md\" }}\n"
        )
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    pub(crate) fn write(&self, name: &str, content: impl AsRef<[u8]>) {
        fs::write(self.path(name), content).unwrap();
    }

    pub(crate) fn sparse(&self, name: &str, len: u64) {
        fs::File::create(self.path(name))
            .unwrap()
            .set_len(len)
            .unwrap();
    }

    /// Runs `twinadm` with this configuration and run directory.
    pub(crate) fn twinadm(&self, arguments: &[&str]) -> Ran {
        let output = self.command(arguments).output().unwrap();
        Ran::of(output)
    }

    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_twinadm"));
        command
            .arg("--config")
            .arg(self.path("etc"))
            .arg("--run-dir")
            .arg(self.path("run"))
            .args(arguments)
            .env_remove("TWINBLK_CONFIG")
            .env_remove("CLICOLOR_FORCE");
        command
    }

    /// A daemon that answers each request with what `answer` says.
    pub(crate) fn daemon(
        &self,
        answer: impl Fn(&Request) -> Vec<Response> + Send + 'static,
    ) -> Arc<Mutex<Vec<Request>>> {
        let listener = UnixListener::bind(self.path("run/control.sock")).unwrap();
        let heard = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&heard);
        // Ends with the test process.
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let mut line = String::new();
                if BufReader::new(&stream).read_line(&mut line).is_err() || line.is_empty() {
                    continue;
                }
                let request: Request = serde_json::from_str(&line).unwrap();
                let answers = answer(&request);
                log.lock().unwrap().push(request);
                for answer in answers {
                    let line = serde_json::to_string(&answer).unwrap() + "\n";
                    if (&stream).write_all(line.as_bytes()).is_err() {
                        break;
                    }
                }
            }
        });
        heard
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        drop(fs::remove_dir_all(&self.0));
    }
}

/// What a run left.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) code: i32,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Ran {
    fn of(output: Output) -> Self {
        Self {
            code: output.status.code().unwrap_or(-1),
            out: String::from_utf8(output.stdout).unwrap(),
            err: String::from_utf8(output.stderr).unwrap(),
        }
    }

    /// The id of the first error on stderr, in either form.
    pub(crate) fn id(&self) -> &str {
        let text = self.err.strip_prefix("{\"error\":{\"id\":\"");
        let text = text.or_else(|| self.err.strip_prefix("error["));
        text.and_then(|text| text.get(..5)).unwrap_or("")
    }
}
