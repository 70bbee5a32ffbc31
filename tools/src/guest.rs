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

/// Prints the disk element.
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
    context.put(&disk(&resource.name, &socket, target.unwrap_or(TARGET)))?;
    Ok(exit::OK)
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
