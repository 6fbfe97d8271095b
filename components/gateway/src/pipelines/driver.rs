//! The driver of an execution: saves its checkpoints, stores its events, starts and stops its runs.

use std::{
    future::poll_fn,
    pin::pin,
    rc::Rc,
    task::{Context, Poll},
};

use futures::{
    FutureExt as _, StreamExt as _,
    future::{AbortHandle, Abortable, FusedFuture as _, LocalBoxFuture},
    stream::FuturesUnordered,
};
use spin_sdk::wasip3::spawn;
use weir_codec::pipelines::execution::ExecutionSummary;
use weir_core::{
    pipelines::{Batch, Execution, Run},
    time::Now,
};

use super::{
    Pipelines,
    persistence::{self, WriteRefused},
    running::RunningExecution,
    steps, upload_progress,
};
use crate::platform::clock::{self, Deadline};

/// The delay after which the driver polls again when something is due that cannot start yet. Whatever it waits for
/// wakes the driver earlier.
const LATER_MS: u64 = 50;
const NS_PER_MS: u64 = 1_000_000;

/// The runs in progress, each with its abort handle.
#[derive(Default)]
pub(super) struct Runs {
    running: FuturesUnordered<LocalBoxFuture<'static, Run>>,
    handles: Vec<(Run, AbortHandle)>,
}

impl Pipelines {
    /// Registers an execution and spawns its driver.
    pub(super) fn spawn_driver(&'static self, running: RunningExecution) -> Rc<RunningExecution> {
        let running = Rc::new(running);
        let id = running.execution.borrow().id().clone();
        self.running.borrow_mut().insert(id, running.clone());
        spawn(drive(self, running.clone()));
        running
    }
}

/// Drives an execution to its end. No task awaits this: it ends with the execution, or with the instance.
pub(super) async fn drive(pipelines: &'static Pipelines, running: Rc<RunningExecution>) {
    let mut runs = Runs::default();
    let mut save: Option<LocalBoxFuture<'static, Result<u64, WriteRefused>>> = None;
    let mut append: Option<LocalBoxFuture<'static, Result<(Batch, u64), WriteRefused>>> = None;
    let mut timer: Option<(u64, LocalBoxFuture<'static, ()>)> = None;
    let mut cancelled = pin!(running.cancelled().fuse());
    let mut lease = pin!(running.keep_lease().fuse());
    loop {
        if running.is_lost() || running.is_refused() {
            break;
        }
        let now = clock::now();
        let due_ns = {
            let mut execution = running.execution.borrow_mut();
            if execution.poll_timeout().is_some_and(|at_ns| at_ns <= now.monotonic_ns) {
                execution.handle_timer(now);
            }
            if save.is_none()
                && let Some(checkpoint) = execution.poll_checkpoint(now)
            {
                save = Some(persistence::save(pipelines, running.clone(), checkpoint).boxed_local());
            }
            runs.stop_and_start_of(&mut execution, pipelines, &running, now);
            if append.is_none()
                && let Some(batch) = execution.poll_events(now)
            {
                append = Some(upload_progress::store(running.clone(), batch).boxed_local());
            }
            if execution.is_drained() && save.is_none() && append.is_none() {
                break;
            }
            let later_ns = now.monotonic_ns.saturating_add(LATER_MS * NS_PER_MS);
            execution.poll_timeout().map(|at_ns| if at_ns <= now.monotonic_ns { later_ns } else { at_ns })
        };
        if timer.as_ref().map(|(at_ns, _)| *at_ns) != due_ns {
            timer = due_ns.map(|at_ns| (at_ns, Deadline::at(at_ns).passed().boxed_local()));
        }
        let (mut saved, mut stored) = (None, None);
        let mut changed = pin!(running.changed.wait());
        poll_fn(|context| {
            let mut is_woken = changed.as_mut().poll(context).is_ready();
            is_woken |= !cancelled.is_terminated() && cancelled.as_mut().poll(context).is_ready();
            is_woken |= !lease.is_terminated() && lease.as_mut().poll(context).is_ready();
            if let Some(future) = &mut save
                && let Poll::Ready(number) = future.poll_unpin(context)
            {
                save = None;
                (saved, is_woken) = (number.ok(), true);
            }
            if let Some(future) = &mut append
                && let Poll::Ready(count) = future.poll_unpin(context)
            {
                append = None;
                (stored, is_woken) = (count.ok(), true);
            }
            is_woken |= runs.poll_ended(context);
            if let Some((_, future)) = &mut timer
                && future.poll_unpin(context).is_ready()
            {
                (timer, is_woken) = (None, true);
            }
            if is_woken { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
        if let Some(number) = saved {
            running.execution.borrow_mut().handle_checkpoint_saved(number);
        }
        if let Some((batch, count)) = stored {
            running.execution.borrow_mut().handle_stored(count);
            let mut reliability = pipelines.reliability.borrow_mut();
            for sequenced in batch.events.iter().filter(|sequenced| sequenced.seq <= count) {
                reliability.handle_event(clock::monotonic_ns(), &sequenced.event);
            }
            running.progress_notify.notify();
        }
    }
    // The execution has ended: the remaining runs and writes are dropped.
    drop((runs, save, append));
    let is_ended = !running.is_lost() && !running.is_refused() && {
        upload_progress::report_end(&running).await;
        persistence::end(pipelines, &running).await.is_ok()
    };
    if !is_ended {
        match running.refusal() {
            Some(reason) if !running.is_lost() => {
                persistence::end_refused(&running, &reason).await;
                running.release().await;
            }
            _ => eprintln!("warn: {} is owned by another instance now", running.execution.borrow().id()),
        }
        pipelines.abandon(&running);
        return;
    }
    let status = running.execution.borrow().status(clock::monotonic_ns());
    pipelines.ended(&running, ExecutionSummary::from(status));
    running.finish();
    running.release().await;
}

impl Runs {
    /// Cancels the runs that are to stop, and starts those that can. Returns whether any was started.
    pub(super) fn stop_and_start(
        &mut self,
        pipelines: &'static Pipelines,
        running: &Rc<RunningExecution>,
        now: Now,
    ) -> bool {
        self.stop_and_start_of(&mut running.execution.borrow_mut(), pipelines, running, now)
    }

    fn stop_and_start_of(
        &mut self,
        execution: &mut Execution,
        pipelines: &'static Pipelines,
        running: &Rc<RunningExecution>,
        now: Now,
    ) -> bool {
        while let Some(run) = execution.poll_stop() {
            self.stop(run);
        }
        let before = self.handles.len();
        while running.is_owned(now)
            && let Some(request) = execution.poll_start(now)
        {
            let (handle, registration) = AbortHandle::new_pair();
            let run = request.run;
            let step = Abortable::new(steps::run(pipelines, running.clone(), request), registration);
            self.handles.push((run, handle));
            self.running.push(step.map(move |_| run).boxed_local());
        }
        self.handles.len() > before
    }

    /// Polls the runs. Returns whether any has ended.
    pub(super) fn poll_ended(&mut self, context: &mut Context<'_>) -> bool {
        let mut ended = false;
        while let Poll::Ready(Some(run)) = self.running.poll_next_unpin(context) {
            self.handles.retain(|(other, _)| *other != run);
            ended = true;
        }
        ended
    }

    fn stop(&mut self, run: Run) {
        if let Some(at) = self.handles.iter().position(|(other, _)| *other == run) {
            self.handles.swap_remove(at).1.abort();
        }
    }
}
