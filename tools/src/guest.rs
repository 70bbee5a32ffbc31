//! `guest xml`: what a libvirt domain needs to have a resource as its disk.

use std::fmt::Write as _;
use std::path::Path;

use replicator::admin::exit;

use crate::cli::OneResource;
use crate::context::{Context, Failure};
use crate::local;

/// Seconds for which QEMU waits for a daemon that is being started again.
const RECONNECT_DELAY: u32 = 30;

/// The disk's name in the guest where the configuration does not say.
const TARGET: &str = "vda";

/// Prints the disk element, one for each volume.
///
/// # Errors
/// If the configuration is invalid or has no such resource.
pub(crate) fn xml(context: &Context, arguments: &OneResource) -> Result<u8, Failure> {
    let config = context.load_config()?.config;
    let resource = config
        .resource(&arguments.resource)
        .ok_or_else(|| local::no_such_resource(&arguments.resource))?;
    let target = resource.guest.as_ref().and_then(|it| it.target.as_deref());
    let socket = context.run_dir.join(format!("nbd/{}.sock", resource.name));
    // libvirt and QEMU have other working directories.
    let socket = std::path::absolute(&socket).unwrap_or(socket);
    let first = target.unwrap_or(TARGET);
    for (nr, volume) in resource.volumes.iter().enumerate() {
        let export = match nr {
            0 => resource.name.clone(),
            _ => format!("{}/{}", resource.name, volume.id.0),
        };
        context.put(&disk(&export, &socket, &target_after(first, nr)))?;
    }
    Ok(exit::OK)
}

/// The name so many places behind `first`: `vdb` after `vda`, and `vdaa` after `vdz`.
fn target_after(first: &str, places: usize) -> String {
    const LETTERS: &[u8; 26] = b"abcdefghijklmnopqrstuvwxyz";
    let last = first.char_indices().next_back();
    let (at, letter) = last.unwrap_or((0, ' '));
    let known = LETTERS.iter().position(|it| char::from(*it) == letter);
    let letter = |nr: usize| char::from(LETTERS[nr % LETTERS.len()]);
    match (known, places) {
        (_, 0) => first.to_owned(),
        (Some(nr), _) if nr + places < LETTERS.len() => {
            format!("{}{}", &first[..at], letter(nr + places))
        }
        (Some(nr), _) => format!("{}a{}", &first[..at], letter(nr + places)),
        (None, _) => format!("{first}{}", letter(places)),
    }
}

/// An error stops the guest and is no error inside: once the volume is served again the guest is let
/// go on. `iothread` wants `<iothreads>1</iothreads>` in the domain.
fn disk(export: &str, socket: &Path, target: &str) -> String {
    let (export, target) = (escaped(export), escaped(target));
    let socket = escaped(&socket.display().to_string());
    let bus = match target.starts_with("sd") {
        true => "scsi",
        false => "virtio",
    };
    // A thread of its own is for virtio alone.
    let iothread = if bus == "virtio" { " iothread='1'" } else { "" };
    format!(
        "<disk type='network' device='disk'>\n  \
           <driver name='qemu' type='raw' cache='none' discard='unmap' detect_zeroes='unmap' \
             error_policy='stop' rerror_policy='stop'{iothread}/>\n  \
           <source protocol='nbd' name='{export}'>\n    \
             <host transport='unix' socket='{socket}'/>\n    \
             <reconnect delay='{RECONNECT_DELAY}'/>\n  \
           </source>\n  \
           <target dev='{target}' bus='{bus}'/>\n\
         </disk>\n"
    )
}

fn escaped(text: &str) -> String {
    text.chars().fold(String::new(), |mut out, character| {
        match character {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '\'' => out.push_str("&apos;"),
            control if control.is_control() => {
                write!(out, "&#{};", u32::from(control)).unwrap_or(());
            }
            other => out.push(other),
        }
        out
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn further_volumes_have_the_next_names() {
        let names = |first, places| target_after(first, places);
        assert_eq!([0, 1, 15].map(|nr| names("vda", nr)), ["vda", "vdb", "vdp"]);
        assert_eq!([1, 2].map(|nr| names("sdy", nr)), ["sdz", "sdaa"]);
        assert_eq!(names("hd1", 1), "hd1b");
    }

    #[test]
    fn the_element_names_socket_export_and_what_an_error_does() {
        let xml = disk("vm-web", Path::new("/run/it's/nbd/vm-web.sock"), "vda");
        for part in [
            "<source protocol='nbd' name='vm-web'>",
            "<host transport='unix' socket='/run/it&apos;s/nbd/vm-web.sock'/>",
            "cache='none'",
            "error_policy='stop' rerror_policy='stop' iothread='1'/>",
            "<reconnect delay='30'/>",
            "<target dev='vda' bus='virtio'/>",
        ] {
            assert!(xml.contains(part), "{part} in {xml}");
        }
    }
}
