//! `dump-md` and `show-gi` for people and for grep: one thing a line, a word and `key:value` after it. Pure.

use super::generations::Generations;
use super::report::{Bitmap, CopyReport, Log, Metadata, Replica, Run};

/// Several lines, the last one ended.
pub(super) fn text(metadata: &Metadata) -> String {
    let mut text = format!(
        "{} node:{} meta:{} area:{} in-use:{}\n",
        metadata.volume,
        metadata.node,
        metadata.meta,
        metadata.area_bytes,
        yes(metadata.in_use)
    );
    for copy in &metadata.superblocks {
        text += &superblock(copy, metadata.choice);
    }
    if let Some(replica) = &metadata.replica {
        text += &replica_lines(replica);
    }
    if let Some(log) = &metadata.activity_log {
        text += &log_lines(log);
    }
    if let Some(bitmap) = &metadata.bitmap {
        text += &bitmap_lines(bitmap);
    }
    text
}

fn superblock(copy: &CopyReport, choice: Option<&str>) -> String {
    let mut line = format!(
        "superblock copy:{} offset:{} content:{}",
        copy.copy, copy.offset, copy.content
    );
    let mut add = |key: &str, value: Option<String>| {
        if let Some(value) = value {
            line += &format!(" {key}:{value}");
        }
    };
    add("format", copy.format.map(|it| it.to_string()));
    add("sequence", copy.sequence.map(|it| it.to_string()));
    add("replica", copy.replica.clone());
    add("counts", Some(yes(copy.counts).to_owned()));
    add("because", choice.filter(|_| copy.counts).map(str::to_owned));
    line + "\n"
}

fn replica_lines(it: &Replica) -> String {
    let number = |view: Option<u64>| view.map_or_else(none, |view| view.to_string());
    let id = |id: &Option<String>| id.clone().unwrap_or_else(none);
    let flags = &it.flags;
    let features = &it.features;
    [
        format!(
            "replica id:{} resource:{} volume:{} node-index:{} ours:{}",
            it.id,
            it.resource,
            it.volume,
            it.node_index,
            yes(it.ours)
        ),
        format!(
            "state {} in-sync-since:{} last-view:{} in-sync-from:{}",
            it.state,
            number(it.in_sync_since),
            number(it.last_view),
            number(it.in_sync_from)
        ),
        format!(
            "generation data:{} bitmap-base:{} boot:{}",
            id(&it.data_generation),
            it.bitmap_base.as_deref().unwrap_or("zeroes"),
            it.boot_id
        ),
        format!("size bytes:{} metadata:{}", it.size_bytes, it.needed_bytes),
        format!(
            "flags open:{} full-sync-needed:{} bits-coarse:{} zero-proven:{} \
             unwritten-bits-set:{} may-be-ahead:{} may-be-behind:{}",
            yes(flags.open),
            yes(flags.full_sync_needed),
            yes(flags.bits_coarse),
            yes(flags.zero_proven),
            yes(flags.unwritten_bits_set),
            yes(flags.may_be_ahead),
            yes(flags.may_be_behind)
        ),
        format!(
            "features compat:{} ro-compat:{} incompat:{}",
            features.compat, features.ro_compat, features.incompat
        ),
    ]
    .map(|line| line + "\n")
    .concat()
}

fn log_lines(log: &Log) -> String {
    let count = |it: Option<u64>| it.map_or_else(none, |it| it.to_string());
    let mut text = format!(
        "activity-log content:{} slots:{} used:{} pages:{} newest:{}\n",
        log.content,
        log.slots,
        count(log.slots_used),
        log.pages,
        count(log.newest)
    );
    for Run { first, count } in &log.extents {
        let (first, count) = (u64::from(*first), u64::from(*count));
        text += &format!(
            "extents first:{first} count:{count} offset:{} bytes:{}\n",
            first * log.extent_bytes,
            count * log.extent_bytes
        );
    }
    text
}

fn bitmap_lines(it: &Bitmap) -> String {
    let mut text = format!(
        "bitmap pages:{} written:{} unwritten:{} damaged:{} missing:{} block:{}\n\
         marked-on-disk blocks:{} bytes:{}\n\
         marked blocks:{} bytes:{} all:{}\n",
        it.pages,
        it.written,
        it.unwritten,
        it.damaged,
        it.missing,
        it.block_bytes,
        it.marked_on_disk_blocks,
        it.marked_on_disk_bytes,
        it.marked_blocks,
        it.marked_bytes,
        yes(it.all_marked)
    );
    for page in &it.damaged_pages {
        let first_block = u64::from(*page) * it.blocks_per_page;
        text += &format!("damaged-page {page} first-block:{first_block}\n");
    }
    text
}

fn yes(it: bool) -> &'static str {
    if it { "yes" } else { "no" }
}

fn none() -> String {
    "none".to_owned()
}

/// `show-gi`: what decides who is newest, then in words.
pub(super) fn generations(it: &Generations) -> String {
    let id = |id: &Option<String>| id.clone().unwrap_or_else(none);
    let base = |id: &Option<String>| id.clone().unwrap_or_else(|| "zeroes".to_owned());
    let number = |view: Option<u64>| view.map_or_else(none, |view| view.to_string());
    let (replica, claim) = (&it.replica, &it.claim);
    let mut lines = vec![
        format!(
            "{} node:{} meta:{} in-use:{}",
            it.volume,
            it.node,
            it.meta,
            yes(it.in_use)
        ),
        format!(
            "replica id:{} generation:{} bitmap-base:{}",
            replica.id,
            id(&replica.data_generation),
            base(&replica.bitmap_base)
        ),
        format!(
            "state {} in-sync-since:{} last-view:{} in-sync-from:{}",
            replica.state,
            number(replica.in_sync_since),
            number(replica.last_view),
            number(replica.in_sync_from)
        ),
        format!(
            "claim blank:{} inconsistent:{} dirty-blocks:{} dirty-bytes:{} coarse:{} \
             zero-proven:{} lost-volatile:{} bitmap-base:{} size:{}",
            yes(claim.blank),
            yes(claim.inconsistent),
            claim.dirty_blocks,
            claim.dirty_bytes,
            yes(claim.marks_are_coarse),
            yes(claim.zero_proven),
            claim.lost_volatile.map_or("depends", yes),
            base(&claim.bitmap_base),
            claim.size_bytes
        ),
    ];
    if let Some(view) = &it.view {
        lines.push(format!(
            "view number:{} primary:{} in-sync:{}",
            view.number,
            id(&view.primary),
            view.in_sync.join(",")
        ));
    }
    if let Some(peer) = &it.peer {
        lines.push(format!(
            "peer {} connection:{} role:{} disk:{} out-of-sync:{}",
            peer.node,
            peer.connection,
            peer.role,
            peer.disk.map_or_else(none, |disk| disk.to_string()),
            number(peer.out_of_sync_bytes)
        ));
    }
    lines.extend(it.explanation.iter().map(|words| format!("# {words}")));
    lines.join("\n") + "\n"
}
