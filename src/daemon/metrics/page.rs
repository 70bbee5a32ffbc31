//! The page for people: the resources as a table, anew every five seconds. No script, no action.

use std::fmt::{self, Write as _};

use replicator::admin::{ResourceStatus, Status};

const STYLE: &str = "body{font:15px/1.5 system-ui,sans-serif;margin:2rem;color:#1b1f24;background:#fff}\
table{border-collapse:collapse}th,td{text-align:left;padding:.3rem .9rem .3rem 0;\
border-bottom:1px solid #d8dee4;vertical-align:top}th{font-weight:600}\
.bad{color:#b3261e;font-weight:600}.small{color:#57606a}\
@media(prefers-color-scheme:dark){body{color:#e6edf3;background:#0d1117}th,td{border-color:#30363d}\
.bad{color:#ff7b72}.small{color:#8b949e}}";

/// The whole page.
pub(super) fn render(status: &Status) -> String {
    let cluster = &status.cluster;
    let mut page = format!(
        "<!doctype html><html lang=en><meta charset=utf-8><meta http-equiv=refresh content=5>\
         <meta name=viewport content=\"width=device-width\"><title>twinblk {0}</title>\
         <style>{STYLE}</style><h1>{1}</h1><p>node {0} · quorum {2} ({3} of {4} voters)",
        Text(&status.node),
        Text(&cluster.name),
        if cluster.quorum {
            "yes"
        } else {
            "<span class=bad>no</span>"
        },
        cluster.voters_seen,
        cluster.voters,
    );
    if let Some(arbitrator) = &cluster.arbitrator {
        let seen = if arbitrator.seen {
            "ok"
        } else {
            "<span class=bad>silent</span>"
        };
        _ = write!(page, " · arbitrator {} {seen}", Text(&arbitrator.node));
    }
    if cluster.insecure {
        page.push_str(" · <span class=bad>clear text</span>");
    }
    if let Some(why) = &cluster.tls_mismatch {
        _ = write!(page, " · <span class=bad>{}</span>", Text(why));
    }
    page.push_str("</p><table><tr><th>resource<th>role<th>disk<th>peer<th>sync<th>guests<th></tr>");
    for resource in &status.resources {
        push_row(&mut page, resource);
    }
    _ = write!(
        page,
        "</table><p class=small>{} · <a href=/metrics>metrics</a> · <a href=/status.json>JSON</a></p></html>",
        Text(&status.generated)
    );
    page
}

fn push_row(page: &mut String, resource: &ResourceStatus) {
    let role = resource.role.map_or("down", |role| role.word());
    _ = write!(page, "<tr><td>{}<td>{role}<td>", Text(&resource.name));
    let disks: Vec<_> = resource.volumes.iter().filter_map(|it| it.disk).collect();
    push_words(page, disks.iter().map(|disk| disk.word()));
    page.push_str("<td>");
    for peer in &resource.peers {
        _ = write!(page, "{} {} ", Text(&peer.node), peer.connection.word());
        push_words(page, peer.volumes.iter().map(|volume| volume.disk.word()));
    }
    page.push_str("<td>");
    let volumes = resource.peers.iter().flat_map(|peer| &peer.volumes);
    for volume in volumes {
        match &volume.resync {
            Some(resync) => {
                _ = write!(page, "{:.1} %", resync.done_ratio * 100.0);
                if let Some(eta) = resync.eta_seconds {
                    _ = write!(page, ", {eta} s left");
                }
            }
            None => page.push_str(volume.replication.word()),
        }
    }
    page.push_str("<td>");
    let clients: u32 = resource
        .volumes
        .iter()
        .map(|volume| volume.nbd_clients)
        .sum();
    _ = write!(page, "{clients}<td>");
    if let Some(why) = &resource.status {
        _ = write!(page, "<span class=bad>{}</span>", Text(why));
    }
    if let Some(action) = &resource.action {
        _ = write!(page, "<br><span class=small>{}</span>", Text(action));
    }
    page.push_str("</tr>");
}

fn push_words<'a>(page: &mut String, words: impl Iterator<Item = &'a str>) {
    page.push_str(&words.collect::<Vec<_>>().join(", "));
}

/// Text where HTML has markup.
struct Text<'a>(&'a str);

impl fmt::Display for Text<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for char in self.0.chars() {
            match char {
                '<' => f.write_str("&lt;")?,
                '>' => f.write_str("&gt;")?,
                '&' => f.write_str("&amp;")?,
                '"' => f.write_str("&quot;")?,
                char => f.write_char(char)?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use crate::daemon::status::tests::of_a_serving_primary;

    use super::*;

    #[test]
    fn what_the_page_quotes_is_no_markup() {
        let mut status = of_a_serving_primary();
        status.resources[0].status = Some("<script>&\"".to_owned());
        let page = render(&status);
        assert!(page.contains("&lt;script&gt;&amp;&quot;"));
        assert!(!page.contains("<script"));
        for resource in &status.resources {
            assert!(page.contains(&resource.name));
        }
    }
}
