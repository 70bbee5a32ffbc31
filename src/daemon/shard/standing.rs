//! Who of a resource's clients is how far, kept so that one more of ten thousand costs no more than the
//! second.
//!
//! Invariant: the list that was published is of now when it says that nobody is attached, or the first
//! one is; of a long one it may lag by a fraction of its length, and by no more than the interval of
//! publications.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::slots::Key;
use crate::daemon::api::NbdClient;

/// The list is made anew when so much of it may have changed: a sixteenth. So a change costs sixteen
/// entries, however many there are.
const LAG_DIVISOR: usize = 16;

/// How far a client is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// In its handshake.
    Greeting,
    /// Past it.
    Attached,
    /// Its session is over, or drains.
    Leaving,
}

/// The clients of one resource, or those by TCP that have not chosen one.
#[derive(Debug, Default)]
pub(super) struct Standings {
    /// By age.
    greeting: BTreeSet<(u64, Key)>,
    attached: BTreeSet<Key>,
    /// As it was published.
    list: Arc<[NbdClient]>,
    /// Changes since.
    changes: usize,
}

impl Standings {
    /// A client's standing changed; `None`: it was not there, or is not any more.
    pub(super) fn note(
        &mut self,
        client: Key,
        born: u64,
        before: Option<Standing>,
        now: Option<Standing>,
    ) {
        match before {
            Some(Standing::Greeting) => _ = self.greeting.remove(&(born, client)),
            Some(Standing::Attached) => _ = self.attached.remove(&client),
            Some(Standing::Leaving) | None => {}
        }
        match now {
            Some(Standing::Greeting) => _ = self.greeting.insert((born, client)),
            Some(Standing::Attached) => _ = self.attached.insert(client),
            Some(Standing::Leaving) | None => {}
        }
        if before == Some(Standing::Attached) || now == Some(Standing::Attached) {
            self.note_change();
        }
    }

    /// One of those that are passed on came or went.
    pub(super) fn note_change(&mut self) {
        self.changes += 1;
    }

    /// Those in their handshake, the oldest first.
    pub(super) fn greeting(&self) -> impl ExactSizeIterator<Item = Key> {
        self.greeting.iter().map(|(_, key)| *key)
    }

    /// Those past it.
    pub(super) fn attached(&self) -> impl ExactSizeIterator<Item = Key> {
        self.attached.iter().copied()
    }

    /// Whether the list differs from what was published.
    pub(super) fn has_changed(&self) -> bool {
        self.changes > 0
    }

    /// Whether it differs by so much that it is to be published at once.
    pub(super) fn is_due(&self) -> bool {
        self.changes > self.list.len() / LAG_DIVISOR
    }

    /// The list, made anew.
    pub(super) fn renew(&mut self, list: Vec<NbdClient>) {
        self.list = list.into();
        self.changes = 0;
    }

    /// As it was published last.
    pub(super) fn list(&self) -> Arc<[NbdClient]> {
        Arc::clone(&self.list)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(index: u32) -> Key {
        Key {
            index,
            generation: 1,
        }
    }

    /// Ten thousand come and go: what is copied for the lists that are published grows with their
    /// number, not with its square; the first and the last are told at once.
    #[test]
    fn a_list_of_many_is_copied_in_proportion_to_its_changes() {
        const CLIENTS: u32 = 10_000;
        let mut standings = Standings::default();
        let mut copied = 0;
        let mut publish = |standings: &mut Standings| {
            if standings.is_due() {
                let len = standings.attached().len();
                standings.renew(vec![NbdClient::default(); len]);
                copied += len;
            }
        };
        for nr in 0..CLIENTS {
            standings.note(key(nr), nr.into(), None, Some(Standing::Greeting));
            assert!(!standings.has_changed() || nr > 0, "nobody attached");
            let before = Some(Standing::Greeting);
            standings.note(key(nr), nr.into(), before, Some(Standing::Attached));
            publish(&mut standings);
            let lag = standings.attached().len() - standings.list().len();
            assert!(lag <= standings.list().len() / LAG_DIVISOR, "{nr}");
        }
        for nr in 0..CLIENTS {
            let before = Some(Standing::Attached);
            standings.note(key(nr), nr.into(), before, Some(Standing::Leaving));
            standings.note(key(nr), nr.into(), Some(Standing::Leaving), None);
            publish(&mut standings);
        }
        assert!(standings.list().is_empty() && standings.greeting().len() == 0);
        assert!(
            copied <= 2 * CLIENTS as usize * (LAG_DIVISOR + 2),
            "{copied}"
        );
    }
}
