//! Orders about resyncs: hold them, let them go on, set their speed.

use std::num::NonZeroU64;
use std::time::Duration;

use replicator::admin::{ErrorId, ErrorReport, MaxRate};
use replicator::engine::{AdminRequest, ResyncOrder};
use replicator::types::ResyncRate;

use super::node::Node;
use super::orders::{ORDER_TIMEOUT, Outcome, done};
use crate::config::{ResourceConfig, size_text};

impl Node {
    pub(super) fn hold_resync_order(
        &self,
        resource: &ResourceConfig,
        hold: bool,
        timeout: Option<Duration>,
    ) -> Outcome {
        self.check_running(resource)?;
        let (name, node) = (&resource.name, self.name());
        let word = if hold { "held on" } else { "not held on" };
        let already = self.engine(resource, |it| it.sync_paused == hold);
        if !already {
            let order = if hold {
                ResyncOrder::Pause
            } else {
                ResyncOrder::Resume
            };
            self.order_resync(resource, order, timeout, |it| it.sync_paused == hold)?;
        }
        let mut message = format!("resyncs of {name} are {word} {node}");
        if already {
            message += " already";
        }
        if !hold && self.engine(resource, |it| it.peer_sync_paused) {
            let peer = self.config.node_name(self.node.peer());
            message += &format!(", but still on {peer}: twinadm resume-sync {name} --node {peer}");
        }
        done(!already, message)
    }

    pub(super) fn resync_rate_order(
        &self,
        resource: &ResourceConfig,
        max_rate: MaxRate,
        timeout: Option<Duration>,
    ) -> Outcome {
        self.check_running(resource)?;
        let name = &resource.name;
        let rate = match max_rate {
            MaxRate::Auto => Some(ResyncRate::Auto),
            MaxRate::Unlimited => Some(ResyncRate::Unlimited),
            MaxRate::BytesPerSecond(rate) => NonZeroU64::new(rate).map(ResyncRate::BytesPerSecond),
        };
        let rate = rate.ok_or_else(|| {
            let what = format!("resyncs of {name} go on as before");
            let why = "a rate of 0 would never end: pause-sync holds a resync";
            ErrorReport::new(ErrorId::BadRequest, what, why)
                .next(format!("twinadm pause-sync {name}"))
        })?;
        let speed = match rate {
            ResyncRate::Unlimited => "as fast as disks and link allow".to_owned(),
            ResyncRate::Auto => "as fast as guests do not feel it".to_owned(),
            ResyncRate::BytesPerSecond(rate) => format!("at {}/s at most", size_text(rate.get())),
        };
        if self.engine(resource, |it| it.resync_rate == rate) {
            return done(false, format!("resyncs of {name} go {speed} already"));
        }
        self.order_resync(resource, ResyncOrder::Rate(rate), timeout, |it| {
            it.resync_rate == rate
        })?;
        done(true, format!("resyncs of {name} go {speed}"))
    }

    fn order_resync(
        &self,
        resource: &ResourceConfig,
        order: ResyncOrder,
        timeout: Option<Duration>,
        is_so: impl Fn(&replicator::engine::Snapshot) -> bool,
    ) -> Result<(), ErrorReport> {
        self.admin(resource, AdminRequest::Resync(order));
        if self.wait_engine(resource, timeout.unwrap_or(ORDER_TIMEOUT), is_so) {
            return Ok(());
        }
        let what = format!("no answer about the resyncs of {}", resource.name);
        let why = "the engine did not take the order in time";
        Err(ErrorReport::new(ErrorId::TimedOut, what, why))
    }
}
