//! The body of every response that leaves a larder layer.

use std::{
    collections::VecDeque,
    future::poll_fn,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker},
};

use bytes::{Bytes, BytesMut};
use http::{Response, header};
use http_body::{Body, Frame, SizeHint};
use larder_core::kernel::Scope;
use pin_project_lite::pin_project;

use crate::recording::Reader;

/// The boxed future of a response.
pub(crate) type BoxedResponse<R, E> =
    Pin<Box<dyn Future<Output = Result<Response<CacheBody<R>>, E>> + Send>>;

/// The error type of bodies.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Returns the length of a body, if it is announced.
pub(crate) fn announced_length<R: Body>(response: &Response<R>) -> Option<u64> {
    response
        .body()
        .size_hint()
        .exact()
        .or_else(|| response.headers().get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok())
}

pin_project! {
    /// A body that is held in memory in full, recorded while it is read, or passed through from the inner service.
    ///
    /// Data frames are always [`Bytes`]; a held body shares them with the cache without a copy.
    #[derive(Debug)]
    pub struct CacheBody<R> {
        #[pin]
        source: Source<R>,
    }
}

pin_project! {
    // Held bytes and the inner body are inline, and the other variants are boxed, so that this enum is small: every hit
    // moves it several times, and a router boxes it.
    #[project = SourceProjection]
    #[derive(Debug)]
    enum Source<R> {
        Held { left: Option<Bytes> },
        RecordingOutcome { reader: Pin<Box<Reader<R>>> },
        Inner { #[pin] body: R, scope: Option<Box<Scope>> },
        ReadAhead { ahead: Box<ReadAheadBody<R>> },
        Observed { observed: Box<ObservedBody<R>> },
    }
}

/// The body of the inner service, which is passed through, and copied for a call that gets all of it.
struct ObservedBody<R> {
    body: Pin<Box<R>>,
    scope: Scope,
    copy: BytesMut,
    most: usize,
    /// The length that the head announces.
    announced: Option<u64>,
    /// Dropped if the body is too long, has trailers, fails, or is not read to its end.
    whole: Option<Box<dyn FnOnce(Bytes) + Send>>,
}

impl<R> std::fmt::Debug for ObservedBody<R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ObservedBody").field("copied", &self.copy.len()).finish_non_exhaustive()
    }
}

impl<R> ObservedBody<R>
where
    R: Body<Data = Bytes>,
    R::Error: Into<BoxError>,
{
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let entered = self.scope.enter();
        let frame = std::task::ready!(self.body.as_mut().poll_frame(cx));
        drop(entered);
        match &frame {
            Some(Ok(frame)) => match frame.data_ref() {
                Some(data) if self.copy.len() + data.len() <= self.most => {
                    self.copy.extend_from_slice(data);
                    // The client reads no further than to the announced length.
                    if self.announced == Some(self.copy.len() as u64) || self.body.is_end_stream() {
                        self.ended();
                    }
                }
                Some(_) | None => self.whole = None,
            },
            Some(Err(_)) => self.whole = None,
            None => self.ended(),
        }
        Poll::Ready(frame.map(|frame| frame.map_err(Into::into)))
    }

    fn ended(&mut self) {
        if let Some(whole) = self.whole.take() {
            whole(std::mem::take(&mut self.copy).freeze());
        }
    }
}

/// Frames that were read ahead, and the rest of the body, which must not move because it was already polled.
#[derive(Debug)]
struct ReadAheadBody<R> {
    frames: VecDeque<Result<Frame<Bytes>, BoxError>>,
    rest: Option<Pin<Box<R>>>,
    /// The scope of the request, in which the rest is polled.
    scope: Option<Scope>,
}

impl<R> From<Bytes> for CacheBody<R> {
    fn from(bytes: Bytes) -> Self {
        Self::held(bytes)
    }
}

/// An empty body for any `R`, with which layers outside of larder's layers can build their own responses.
impl<R> Default for CacheBody<R> {
    fn default() -> Self {
        Self::empty()
    }
}

impl<R> CacheBody<R> {
    /// Creates a held body of these bytes.
    pub fn held(bytes: Bytes) -> Self {
        let left = (!bytes.is_empty()).then_some(bytes);
        Self { source: Source::Held { left } }
    }

    /// Creates an empty body.
    pub fn empty() -> Self {
        Self { source: Source::Held { left: None } }
    }

    /// Passes the body of the inner service through.
    pub fn inner(body: R) -> Self {
        Self { source: Source::Inner { body, scope: None } }
    }

    /// Passes the body of the inner service through, and polls it in the scope of its request.
    pub(crate) fn scoped(body: R, scope: Scope) -> Self {
        Self { source: Source::Inner { body, scope: Some(Box::new(scope)) } }
    }

    /// Passes the body of the inner service through, and polls it in the scope of its request. Calls `whole` with all of it,
    /// if it is no longer than `most` and ends without trailers.
    pub(crate) fn observed(
        body: R,
        scope: Scope,
        (most, announced): (usize, Option<u64>),
        whole: impl FnOnce(Bytes) + Send + 'static,
    ) -> Self
    where
        R: Body,
    {
        let whole: Box<dyn FnOnce(Bytes) + Send> = Box::new(whole);
        if body.is_end_stream() {
            whole(Bytes::new());
            return Self::scoped(body, scope);
        }
        let (body, copy, whole) = (Box::pin(body), BytesMut::new(), Some(whole));
        let observed = Box::new(ObservedBody { body, scope, copy, most, announced, whole });
        Self { source: Source::Observed { observed } }
    }

    pub(crate) fn recorded(reader: Reader<R>) -> Self {
        Self { source: Source::RecordingOutcome { reader: Box::pin(reader) } }
    }

    /// Returns the bytes of a held body, and `None` for any other body.
    pub(crate) fn as_held(&self) -> Option<&Bytes> {
        static NONE: Bytes = Bytes::new();
        match &self.source {
            Source::Held { left } => Some(left.as_ref().unwrap_or(&NONE)),
            _ => None,
        }
    }
}

impl<R> CacheBody<R>
where
    R: Body<Data = Bytes>,
    R::Error: Into<BoxError>,
{
    /// Reads all frames that are ready, without waiting. A body that has ended by then, without trailers or an error,
    /// becomes a held body.
    ///
    /// A no-op waker suffices, because the reader of the body polls the rest again.
    pub(crate) fn read_ahead(body: R, scope: Option<Scope>) -> Self {
        let entered = scope.as_ref().map(Scope::enter);
        let mut rest = Box::pin(body);
        let mut frames = VecDeque::new();
        let mut cx = Context::from_waker(Waker::noop());
        let rest = loop {
            match rest.as_mut().poll_frame(&mut cx) {
                Poll::Ready(Some(frame)) => {
                    let failed = frame.is_err();
                    frames.push_back(frame.map_err(Into::into));
                    if failed {
                        break None;
                    }
                }
                Poll::Ready(None) => break None,
                Poll::Pending => break Some(rest),
            }
        };
        drop(entered);
        Self::of_frames(frames, rest, scope)
    }

    /// Reads this body to its end. A body without trailers that did not fail becomes a held body.
    pub(crate) async fn gathered(self) -> Self {
        let mut body = Box::pin(self);
        let mut frames = VecDeque::new();
        while let Some(frame) = poll_fn(|cx| body.as_mut().poll_frame(cx)).await {
            let failed = frame.is_err();
            frames.push_back(frame);
            if failed {
                break;
            }
        }
        Self::of_frames(frames, None, None)
    }

    fn of_frames(
        frames: VecDeque<Result<Frame<Bytes>, BoxError>>,
        rest: Option<Pin<Box<R>>>,
        scope: Option<Scope>,
    ) -> Self {
        let is_data = |frame: &Result<Frame<Bytes>, _>| frame.as_ref().is_ok_and(Frame::is_data);
        if rest.is_none() && frames.iter().all(is_data) {
            return Self::held(joined(&frames));
        }
        Self {
            source: Source::ReadAhead { ahead: Box::new(ReadAheadBody { frames, rest, scope }) },
        }
    }
}

/// Returns the data of the frames that have data.
fn data(frames: &VecDeque<Result<Frame<Bytes>, BoxError>>) -> impl Iterator<Item = &Bytes> {
    frames.iter().filter_map(|frame| frame.as_ref().ok()?.data_ref())
}

/// Joins the data of frames; a single frame is not copied.
fn joined(frames: &VecDeque<Result<Frame<Bytes>, BoxError>>) -> Bytes {
    let mut data = data(frames);
    match (data.next(), data.next()) {
        (Some(only), None) => only.clone(),
        (first, second) => {
            let mut whole = BytesMut::new();
            let all = first.into_iter().chain(second).chain(data);
            all.for_each(|data| whole.extend_from_slice(data));
            whole.freeze()
        }
    }
}

impl<R> Body for CacheBody<R>
where
    R: Body<Data = Bytes>,
    R::Error: Into<BoxError>,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match self.project().source.project() {
            SourceProjection::Held { left } => Poll::Ready(left.take().map(|b| Ok(Frame::data(b)))),
            SourceProjection::RecordingOutcome { reader } => reader.as_mut().poll_frame(cx),
            SourceProjection::ReadAhead { ahead } => match ahead.frames.pop_front() {
                Some(frame) => Poll::Ready(Some(frame)),
                None => match &mut ahead.rest {
                    Some(rest) => {
                        let _entered = ahead.scope.as_ref().map(Scope::enter);
                        let frame = rest.as_mut().poll_frame(cx);
                        frame.map(|frame| frame.map(|frame| frame.map_err(Into::into)))
                    }
                    None => Poll::Ready(None),
                },
            },
            SourceProjection::Observed { observed } => observed.poll_frame(cx),
            SourceProjection::Inner { body, scope } => {
                let _entered = scope.as_ref().map(|scope| scope.enter());
                body.poll_frame(cx).map(|frame| frame.map(|frame| frame.map_err(Into::into)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.source {
            Source::Held { left } => left.is_none(),
            Source::RecordingOutcome { reader } => reader.is_end_stream(),
            Source::Inner { body, .. } => body.is_end_stream(),
            Source::Observed { observed } => observed.body.is_end_stream(),
            Source::ReadAhead { ahead } => {
                let over = ahead.rest.as_ref().is_none_or(http_body::Body::is_end_stream);
                ahead.frames.is_empty() && over
            }
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            Source::Held { left } => {
                SizeHint::with_exact(left.as_ref().map_or(0, |bytes| bytes.len() as u64))
            }
            Source::RecordingOutcome { reader } => reader.size_hint(),
            Source::Inner { body, .. } => body.size_hint(),
            Source::Observed { observed } => observed.body.size_hint(),
            Source::ReadAhead { ahead } => {
                let read: usize = data(&ahead.frames).map(Bytes::len).sum();
                let rest = ahead.rest.as_ref();
                let rest = rest.map_or(SizeHint::with_exact(0), http_body::Body::size_hint);
                after(read as u64, &rest)
            }
        }
    }
}

/// Returns the size of `ahead` bytes followed by `rest`.
fn after(ahead: u64, rest: &SizeHint) -> SizeHint {
    let mut hint = SizeHint::new();
    hint.set_lower(ahead.saturating_add(rest.lower()));
    if let Some(upper) = rest.upper().and_then(|upper| upper.checked_add(ahead)) {
        hint.set_upper(upper);
    }
    hint
}

/// The error of a coalesced body that ended early, with the message of its cause, if that is known.
#[derive(Clone, Debug)]
pub(crate) struct BrokenOff(pub(crate) Option<Arc<str>>);

impl std::fmt::Display for BrokenOff {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the coalesced response body ended early")?;
        match &self.0 {
            Some(cause) => write!(f, ": {cause}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for BrokenOff {}
