//! NBD by TCP, with the clients people use and with those nobody wants.

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use nix::sys::signal::Signal;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrIn, bind, connect, socket};
use rcgen::{DnType, SerialNumber};

use crate::authority::{Authority, Use};
use crate::cluster::{A, B, Cluster, PATIENCE, RES, Setup, Tcp};
use crate::nbd::Nbd;
use crate::tools::{Ran, have, now, program, wait_for};

const LIMIT: Duration = Duration::from_secs(20);

const GREETING: &[u8] = b"NBDMAGICIHAVEOPT\x00\x03";
const TLS_REQD: u32 = 0x8000_0005;
const INVALID: u32 = 0x8000_0003;
const ACK: u32 = 1;

/// A pair that serves by TLS, and the authority of its clients.
pub(crate) struct Site {
    pub(crate) cluster: Cluster,
    authority: Authority,
}

impl Site {
    /// `resource`: lines of its table.
    pub(crate) fn serving(resource: &'static str) -> Self {
        let mut cluster = Cluster::new(&Setup {
            tcp: Tcp::Tls,
            resource,
            ..Setup::default()
        });
        let authority = Authority::new();
        authority.write_server(&cluster.tls_dir());
        cluster.bring_up();
        Self { cluster, authority }
    }

    /// A directory with what the client `name` connects with.
    pub(crate) fn client(&self, name: &str) -> PathBuf {
        let dir = self.cluster.dir.join(format!("client-{name}"));
        write_client(&self.authority, &dir, name);
        dir
    }

    /// The URI of libnbd's programs.
    pub(crate) fn uri(&self, node: usize, export: &str, client: &Path) -> String {
        let address = self.cluster.nbd_address(node);
        format!(
            "nbds://{address}/{export}?tls-certificates={}",
            client.display()
        )
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.cluster.nbd_address(A)).unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        stream
    }

    /// Greeted, with flags sent.
    fn haggling(&self) -> TcpStream {
        let mut stream = self.connect();
        let mut greeting = [0; 18];
        stream.read_exact(&mut greeting).unwrap();
        assert_eq!(greeting, GREETING);
        stream.write_all(&3u32.to_be_bytes()).unwrap();
        stream
    }

    fn qemu_io(&self, client: &Path, export: &str, commands: &[&str]) -> Ran {
        let address = self.cluster.nbd_address(A);
        let credentials = format!(
            "tls-creds-x509,id=tls0,endpoint=client,dir={}",
            client.display()
        );
        let image = format!(
            "driver=nbd,host={},port={},export={export},tls-creds=tls0",
            address.ip(),
            address.port()
        );
        let mut arguments = vec!["--object", &credentials, "--image-opts"];
        for command in commands {
            arguments.extend(["-c", command]);
        }
        arguments.push(&image);
        program("qemu-io", &arguments)
    }

    /// Whether a client is served.
    fn serves(&self, client: &Path) -> bool {
        let uri = self.uri(A, RES, client);
        program("nbdinfo", &["--size", &uri]).code == Some(0)
    }
}

/// What a client of this name is given to connect with.
fn write_client(authority: &Authority, dir: &Path, name: &str) {
    let issued = authority.issue(&Authority::params(Use::Client, name));
    authority.write(dir, "client", &issued);
}

fn option(number: u32, data: &[u8]) -> Vec<u8> {
    let len = u32::try_from(data.len()).unwrap();
    let head = [number.to_be_bytes(), len.to_be_bytes()].concat();
    [b"IHAVEOPT", &head[..], data].concat()
}

/// The kind of the next option reply.
fn reply(stream: &mut TcpStream) -> u32 {
    let mut head = [0; 20];
    stream.read_exact(&mut head).unwrap();
    let word = |at: usize| u32::from_be_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
    let mut data = vec![0; usize::try_from(word(16)).unwrap()];
    stream.read_exact(&mut data).unwrap();
    word(12)
}

/// What still comes before the server closes.
fn rest(mut stream: TcpStream) -> Vec<u8> {
    let mut rest = Vec::new();
    // A reset says the same as an end.
    stream.read_to_end(&mut rest).ok();
    rest
}

/// On a loopback address without certificates everybody of this machine is served, under every name
/// of the export; it is named where it is waited for, and a node that is not Primary refuses.
#[test]
fn a_loopback_listener_serves_in_clear_text() {
    if !have(&["nbdinfo", "qemu-img"]) {
        return;
    }
    let cluster = Cluster::serving(&Setup {
        tcp: Tcp::Clear,
        ..Setup::default()
    });
    let address = cluster.nbd_address(A);
    for export in [RES, "vm-web/0", ""] {
        let uri = format!("nbd://{address}/{export}");
        assert_eq!(
            program("nbdinfo", &["--size", &uri]).ok().trim(),
            "67108864"
        );
    }
    let uri = format!("nbd://{address}/{RES}");
    let image = cluster.dir.join("image.raw");
    fs::write(&image, vec![0x5a; 8 << 20]).unwrap();
    let image = image.to_str().unwrap();
    program(
        "qemu-img",
        &["convert", "-n", "-f", "raw", "-O", "raw", image, &uri],
    )
    .ok();
    let mut local = Nbd::attach(&cluster.nbd_socket(A), RES, LIMIT).unwrap();
    assert_eq!(local.read((8 << 20) - 4096, 4096).unwrap(), [0x5a; 4096]);
    // Attached by EXPORT_NAME, and nothing else: that is whom `secondary` waits for.
    let mut attached = TcpStream::connect(address).unwrap();
    attached.write_all(&3u32.to_be_bytes()).unwrap();
    attached.write_all(&option(1, RES.as_bytes())).unwrap();
    attached.read_exact(&mut [0; 18 + 10]).unwrap();
    let words = cluster.adm(A, &["secondary", RES]).exits(4);
    let own = attached.local_addr().unwrap().to_string();
    assert!(words.contains(&own), "{own} is not in: {words}");
    drop(attached);
    let uri = format!("nbd://{}/{RES}", cluster.nbd_address(B));
    let refused = program("qemu-img", &["info", "-f", "raw", &uri]).exits(1);
    assert!(refused.contains("Primary"), "{refused}");
    let status = cluster.status(A).unwrap();
    assert_eq!(
        status["volumes"][0]["export_tcp"],
        format!("nbd://{address}/{RES}")
    );
}

/// QEMU and libnbd write and read through TLS.
#[test]
fn qemu_and_libnbd_are_served_within_tls() {
    if !have(&["nbdinfo", "nbdcopy", "qemu-img", "qemu-io"]) {
        return;
    }
    let site = Site::serving("");
    let client = site.client("kvm-a");
    let commands = [
        "write -P 7 4096 1M",
        "flush",
        "read -P 7 4096 1M",
        "discard 0 64k",
    ];
    let said = site.qemu_io(&client, RES, &commands).ok();
    assert!(!said.contains("failed"), "{said}");
    let uri = site.uri(A, RES, &client);
    let info = program("nbdinfo", &["--json", &uri]).ok();
    let info: serde_json::Value = serde_json::from_str(&info).unwrap();
    assert_eq!(info["TLS"], true);
    assert_eq!(info["exports"][0]["export-size"], 64 << 20);
    let image = site.cluster.dir.join("image.raw");
    let pattern: Vec<u8> = (0..64_usize << 20)
        .map(|at| (at / 4096).to_le_bytes()[0])
        .collect();
    fs::write(&image, &pattern).unwrap();
    let back = site.cluster.dir.join("back.raw");
    program("nbdcopy", &[image.to_str().unwrap(), &uri]).ok();
    program("nbdcopy", &[&uri, back.to_str().unwrap()]).ok();
    assert!(fs::read(&back).unwrap() == pattern);
    let status = site.cluster.status(A).unwrap();
    let shown = format!("nbds://{}/{RES}", site.cluster.nbd_address(A));
    assert_eq!(status["volumes"][0]["export_tcp"], shown);
}

/// Nobody gets in without a certificate of the authority that is within its time and not revoked,
/// and who does not get in disturbs nobody.
#[test]
fn strangers_are_refused_and_disturb_nobody() {
    if !have(&["nbdinfo", "qemu-img", "qemu-io"]) {
        return;
    }
    let site = Site::serving("");
    let good = site.client("good");
    let mut guest = Nbd::attach(&site.cluster.nbd_socket(A), RES, LIMIT).unwrap();

    let clear = format!("nbd://{}/{RES}", site.cluster.nbd_address(A));
    let refused = program("qemu-img", &["info", "-f", "raw", &clear]).exits(1);
    assert!(refused.contains("TLS"), "{refused}");
    let stranger = site.cluster.dir.join("stranger");
    write_client(&Authority::new(), &stranger, "good");
    fs::copy(good.join("ca-cert.pem"), stranger.join("ca-cert.pem")).unwrap();
    assert!(!site.serves(&stranger));
    site.qemu_io(&stranger, RES, &["read 0 4096"]).exits(1);
    let mut params = Authority::params(Use::Client, "late");
    params.not_after = rcgen::date_time_ymd(2020, 1, 1);
    let late = site.cluster.dir.join("late");
    let issued = site.authority.issue(&params);
    site.authority.write(&late, "client", &issued);
    assert!(!site.serves(&late));
    // GnuTLS looks at its own time too; garbage instead of a ClientHello surely arrives.
    for garbage in [
        vec![0x16; 5000],
        b"GET / HTTP/1.1\r\n\r\n".to_vec(),
        vec![0; 70_000],
    ] {
        let mut stream = site.haggling();
        stream.write_all(&option(5, &[])).unwrap();
        assert_eq!(reply(&mut stream), ACK);
        stream.write_all(&garbage).ok();
        assert!(rest(stream).len() < 64, "an alert at most");
    }
    guest.write(0, &[1; 4096]).unwrap();
    assert!(site.serves(&good));
}

/// Before TLS nothing is told, whatever is asked; and what stands in clear text behind STARTTLS is
/// not the client's (CVE-2021-3716).
#[test]
fn nothing_is_told_before_tls() {
    let site = Site::serving("");
    let mut stream = site.haggling();
    for number in [3, 6, 7, 8, 9, 10, 11, 77] {
        stream
            .write_all(&option(number, b"\0\0\0\x06vm-web\0\0"))
            .unwrap();
        assert_eq!(reply(&mut stream), TLS_REQD, "{number}");
    }
    stream.write_all(&option(5, b"x")).unwrap();
    assert_eq!(reply(&mut stream), INVALID);
    stream.write_all(&option(1, RES.as_bytes())).unwrap();
    assert!(rest(stream).is_empty());

    let mut injected = site.haggling();
    injected
        .write_all(&[option(5, &[]), option(8, &[])].concat())
        .unwrap();
    assert_eq!(reply(&mut injected), ACK);
    assert!(rest(injected).is_empty(), "closed, and nothing more said");
}

/// Each way of wasting the handshake's time ends ten seconds after the connection came.
#[test]
fn a_slow_tls_handshake_ends_after_ten_seconds() {
    let site = Site::serving("");
    let begun = now();
    let silent = site.connect();
    let mut half = site.haggling();
    half.write_all(&option(5, &[])).unwrap();
    assert_eq!(reply(&mut half), ACK);
    // A record that says it will be long.
    half.write_all(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03")
        .unwrap();
    let idle: Vec<_> = (0..200).map(|_| site.connect()).collect();
    assert!(rest(half).len() < 64);
    let took = begun.elapsed();
    assert!(took > Duration::from_secs(9) || idle.len() > 64, "{took:?}");
    let mut last = idle.into_iter().next_back().unwrap();
    let mut greeting = [0; 18];
    last.read_exact(&mut greeting).unwrap();
    assert!(rest(last).is_empty());
    let took = begun.elapsed();
    assert!((9..14).contains(&took.as_secs()), "{took:?}");
    drop(silent);
    let mut guest = Nbd::attach(&site.cluster.nbd_socket(A), RES, LIMIT).unwrap();
    guest.write(0, &[1; 4096]).unwrap();
}

/// `nbd-allow` opens a resource to the subjects it names, whole, and to nobody else; the socket of
/// this machine does not ask.
#[test]
fn nbd_allow_opens_a_resource_to_whom_it_names() {
    if !have(&["nbdinfo", "qemu-io"]) {
        return;
    }
    let site = Site::serving("nbd-allow = [\"CN=kvm-a\", \"CN=backup,O=Example\"]\n");
    let (named, other) = (site.client("kvm-a"), site.client("kvm-b"));
    let issue = |dir: &str, change: &dyn Fn(&mut rcgen::CertificateParams)| {
        let mut params = Authority::params(Use::Client, "backup");
        change(&mut params);
        let dir = site.cluster.dir.join(dir);
        site.authority
            .write(&dir, "client", &site.authority.issue(&params));
        dir
    };
    let backup = issue("backup", &|it| {
        it.distinguished_name
            .push(DnType::OrganizationName, "Example");
    });
    let less = issue("less", &|_| {});
    let more = issue("more", &|it| {
        it.distinguished_name
            .push(DnType::OrganizationName, "Example");
        it.distinguished_name.push(DnType::CountryName, "DE");
    });
    assert!(site.serves(&named) && site.serves(&backup));
    for refused in [&other, &less, &more] {
        assert!(!site.serves(refused));
        let words = site.qemu_io(refused, RES, &["read 0 4096"]).exits(1);
        assert!(words.contains("nbd-allow"), "{words}");
    }
    let listed = |client: &Path| {
        let uri = site.uri(A, "", client);
        program("nbdinfo", &["--list", "--json", &uri]).stdout
    };
    assert!(listed(&named).contains("vm-web"));
    assert!(!listed(&other).contains("vm-web"));
    Nbd::attach(&site.cluster.nbd_socket(A), RES, LIMIT).unwrap();

    // The list may change while guests are served.
    let file = site.cluster.dir.join("etc/resources.d/vm-web.toml");
    let text = fs::read_to_string(&file).unwrap();
    fs::write(&file, text.replace("CN=kvm-a", "CN=kvm-b")).unwrap();
    let told = site.cluster.adm(A, &["adjust"]).ok();
    assert!(
        told.contains("nbd-allow") && told.contains("live"),
        "{told}"
    );
    assert!(site.serves(&other) && !site.serves(&named));
}

/// SIGHUP: a new set is in force for new clients, a bad one is refused and the old one stays, and
/// who is attached notices nothing.
#[test]
fn certificates_are_read_again_on_sighup() {
    if !have(&["nbdinfo", "nbdcopy"]) {
        return;
    }
    let site = Site::serving("");
    let mut params = Authority::params(Use::Client, "old");
    params.serial_number = Some(SerialNumber::from_slice(&[7]));
    let old = site.cluster.dir.join("client-old");
    site.authority
        .write(&old, "client", &site.authority.issue(&params));
    let good = site.client("good");
    assert!(site.serves(&old));

    // The first certificate is revoked.
    fs::write(
        site.cluster.tls_dir().join("ca-crl.pem"),
        site.authority.revoke(&[7]),
    )
    .unwrap();
    assert!(site.serves(&old), "not before the signal");
    site.cluster.signal(A, Signal::SIGHUP);
    wait_for("the revoked client is refused", PATIENCE, || {
        (!site.serves(&old)).then_some(())
    });
    assert!(site.serves(&good));

    // A set that cannot be used.
    fs::write(site.cluster.tls_dir().join("server-key.pem"), "no key").unwrap();
    site.cluster.signal(A, Signal::SIGHUP);
    wait_for("it is said in the log", PATIENCE, || {
        site.cluster.logs().contains("stay in use").then_some(())
    });
    assert!(site.serves(&good) && !site.serves(&old));

    // Another authority.
    let next = Authority::new();
    next.write_server(&site.cluster.tls_dir());
    fs::remove_file(site.cluster.tls_dir().join("ca-crl.pem")).unwrap();
    let new = site.cluster.dir.join("client-new");
    write_client(&next, &new, "new");
    site.cluster.signal(A, Signal::SIGHUP);
    wait_for("the new client is served", PATIENCE, || {
        site.serves(&new).then_some(())
    });
    assert!(!site.serves(&good));
}

/// What docs/nbd.md tells a stranger to type makes certificates that are served.
#[test]
fn the_documented_commands_make_certificates_that_work() {
    if !have(&["bash", "openssl", "nbdinfo", "qemu-io"]) {
        return;
    }
    let text = include_str!("../../docs/nbd.md");
    let (_, from) = text.split_once("```sh\n").expect("a block of commands");
    let (commands, _) = from.split_once("```").expect("its end");
    let mut cluster = Cluster::new(&Setup {
        tcp: Tcp::Tls,
        resource: "nbd-allow = [\"CN=backup\"]\n",
        ..Setup::default()
    });
    let commands = commands.replace("10.0.0.1", "127.0.0.1");
    let script = format!("set -e; cd {}\n{commands}", cluster.dir.display());
    program("bash", &["-c", &script]).ok();
    fs::rename(cluster.dir.join("kvm-a"), cluster.tls_dir()).unwrap();
    cluster.bring_up();
    let site = Site {
        cluster,
        authority: Authority::new(),
    };
    let client = site.cluster.dir.join("backup");
    assert!(site.serves(&client));
    site.qemu_io(&client, RES, &["write -P 9 0 64k"]).ok();
}

/// A mistake ends the start with the exit code of its kind, and says what to do.
#[test]
fn a_listener_that_cannot_be_is_refused_at_start() {
    let start = |cluster: &Cluster| {
        let mut child = cluster.daemon(A).stderr(Stdio::piped()).spawn().unwrap();
        wait_for("the daemon gives up", PATIENCE, || {
            child.try_wait().unwrap()
        });
        let output = child.wait_with_output().unwrap();
        let words = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.code(), words)
    };
    let cluster = Cluster::new(&Setup {
        tcp: Tcp::Tls,
        ..Setup::default()
    });
    let (code, words) = start(&cluster);
    assert_eq!(code, Some(3), "{words}");
    for part in ["E0120", "ca-cert.pem", "next"] {
        assert!(words.contains(part), "{part} is not in: {words}");
    }
    Authority::new().write_server(&cluster.tls_dir());
    let _taken = TcpListener::bind(cluster.nbd_address(A)).unwrap();
    let (code, words) = start(&cluster);
    assert_eq!(code, Some(1), "{words}");
    assert!(
        words.contains(&cluster.nbd_address(A).to_string()),
        "{words}"
    );
}

/// A flood of idle connections from one address keeps out that address, and nobody else who is in the
/// middle of a handshake.
#[test]
fn a_flood_from_one_address_keeps_nobody_else_out() {
    let site = Site::serving("");
    let other = socket(
        AddressFamily::Inet,
        SockType::Stream,
        SockFlag::empty(),
        None,
    )
    .unwrap();
    bind(other.as_raw_fd(), &SockaddrIn::new(127, 0, 0, 2, 0)).unwrap();
    let port = site.cluster.nbd_address(A).port();
    connect(other.as_raw_fd(), &SockaddrIn::new(127, 0, 0, 1, port)).unwrap();
    let mut other = TcpStream::from(other);
    other.set_read_timeout(Some(LIMIT)).unwrap();
    other.read_exact(&mut [0; 18]).unwrap();
    let flood: Vec<_> = (0..300).map(|_| site.haggling()).collect();
    other.write_all(&3u32.to_be_bytes()).unwrap();
    other.write_all(&option(5, &[])).unwrap();
    assert_eq!(reply(&mut other), ACK);
    drop(flood);
}
