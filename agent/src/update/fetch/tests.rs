use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, mpsc};

use bytes::Bytes;
use dunlin_protocol::ReasonCode;
use dunlin_update::Fault;
use futures_util::stream;
use http_body_util::{BodyExt, StreamBody, combinators::BoxBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use super::*;
use crate::update::store::CHUNK_BYTES;

impl Fetcher {
    /// A fetcher for a loopback server without TLS.
    pub(crate) fn plain(base: String) -> Self {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap();
        let tls = tls.with_root_certificates(rustls::RootCertStore::empty()).with_no_client_auth();
        let builder = reqwest::Client::builder().tls_backend_preconfigured(tls).pool_max_idle_per_host(0);
        let client = build(builder, BRISK).unwrap();
        Self { files: client.clone(), client, base, pace: BRISK, medium: Arc::default() }
    }
}

/// As demanding as [`PACE`], in less time.
const BRISK: Pace =
    Pace { silence: Duration::from_millis(1500), stretch: Duration::from_secs(2), bytes_min: 4 * 1024 };

/// What the server does with one request.
#[derive(Clone, Copy)]
enum Act {
    /// Sends what is asked for, then cuts the connection after so many bytes.
    Cut(usize),
    /// Sends what is asked for.
    Serve,
    /// Sends everything, whatever range is asked for.
    Whole,
    /// Flips a bit of what is asked for.
    Flip,
    /// Sends a byte too many.
    Longer,
    /// Claims another range than it was asked for.
    WrongRange,
    /// Answers with a status and a `Retry-After` of seven seconds.
    Refuse(u16),
    /// Sends so many bytes at a time, for ever, with a pause in between.
    Trickle(usize, Duration),
    /// Takes the request and says nothing.
    Silent,
}

type Body = BoxBody<Bytes, std::io::Error>;

struct Server {
    base: String,
    ranges: Arc<Mutex<Vec<Option<u64>>>>,
    task: JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn respond(request: &Request<Incoming>, content: &[u8], act: Act) -> (Option<u64>, Response<Body>) {
    let from: Option<u64> = request.headers().get("range").map(|range| {
        range.to_str().unwrap().strip_prefix("bytes=").unwrap().strip_suffix('-').unwrap().parse().unwrap()
    });
    let mut start = from.unwrap_or(0) as usize;
    let mut response = Response::builder().status(if from.is_some() { 206 } else { 200 });
    let mut content = content.to_vec();
    let total = content.len();
    let mut claimed = start;
    match act {
        Act::Refuse(status) => {
            let empty = http_body_util::Empty::new().map_err(|never: Infallible| match never {}).boxed();
            return (
                from,
                Response::builder().status(status).header("retry-after", "7").body(empty).unwrap(),
            );
        }
        Act::Whole => {
            start = 0;
            response = Response::builder().status(200);
        }
        Act::Flip => content[total / 2] ^= 1,
        Act::Longer => content.push(0),
        Act::WrongRange => claimed = start / 2,
        Act::Trickle(bytes, pause) => {
            let body = stream::unfold((), move |()| async move {
                tokio::time::sleep(pause).await;
                Some((Ok(Frame::data(Bytes::from(vec![0; bytes]))), ()))
            });
            return (from, response.body(StreamBody::new(Box::pin(body)).boxed()).unwrap());
        }
        Act::Cut(_) | Act::Serve | Act::Silent => {}
    }
    if from.is_some() && !matches!(act, Act::Whole) {
        response = response.header("content-range", format!("bytes {claimed}-{}/{total}", total - 1));
    }
    let mut frames: VecDeque<Result<Frame<Bytes>, std::io::Error>> = VecDeque::new();
    let rest = &content[start..];
    let rest = if let Act::Cut(at) = act { &rest[..at.min(rest.len())] } else { rest };
    frames.extend(rest.chunks(10_000).map(|chunk| Ok(Frame::data(Bytes::copy_from_slice(chunk)))));
    let cut = matches!(act, Act::Cut(_));
    let body = stream::unfold(frames, move |mut frames| async move {
        let frame = frames.pop_front();
        if frame.is_none() && cut {
            // The server sends what it holds only while it waits for more.
            tokio::time::sleep(Duration::from_millis(200)).await;
            return Some((Err(std::io::Error::other("the connection is cut here")), frames));
        }
        Some((frame?, frames))
    });
    (from, response.body(StreamBody::new(Box::pin(body)).boxed()).unwrap())
}

/// Serves `content` at every path, one act for each request, the last one for ever.
async fn serve(content: Vec<u8>, acts: Vec<Act>) -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base = format!("http://{}", listener.local_addr().unwrap());
    let ranges = Arc::new(Mutex::new(Vec::new()));
    let (seen, acts, content) =
        (ranges.clone(), Arc::new(Mutex::new(VecDeque::from(acts))), Arc::new(content));
    let task = tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let (seen, acts, content) = (seen.clone(), acts.clone(), content.clone());
            let service = service_fn(move |request| {
                let act = {
                    let mut acts = acts.lock().unwrap();
                    if acts.len() > 1 { acts.pop_front().unwrap() } else { acts[0] }
                };
                let (from, response) = respond(&request, &content, act);
                seen.lock().unwrap().push(from);
                async move {
                    if let Act::Silent = act {
                        std::future::pending::<()>().await;
                    }
                    Ok::<_, Infallible>(response)
                }
            });
            tokio::spawn(
                hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service),
            );
        }
    });
    Server { base, ranges, task }
}

fn content(length: u64) -> Vec<u8> {
    (0..length).map(|i| (i * 31 % 251) as u8).collect()
}

fn blob(bytes: &[u8]) -> Blob {
    Blob { digest: dunlin_trust::sha256(bytes), length: bytes.len() as u64 }
}

struct Case {
    _dir: tempfile::TempDir,
    store: Store,
    server: Server,
    fetcher: Fetcher,
    bytes: Vec<u8>,
    blob: Blob,
}

async fn case(length: u64, acts: Vec<Act>) -> Case {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), 0).unwrap();
    let bytes = content(length);
    let server = serve(bytes.clone(), acts).await;
    let fetcher = Fetcher::plain(server.base.clone());
    let blob = blob(&bytes);
    Case { _dir: dir, store, server, fetcher, bytes, blob }
}

impl Case {
    async fn fetch(&self) -> Result<(), FetchError> {
        self.fetcher.blob(&self.store, &self.blob, ()).await
    }

    fn ranges(&self) -> Vec<Option<u64>> {
        self.server.ranges.lock().unwrap().clone()
    }
}

const LENGTH: u64 = 5 * CHUNK_BYTES + 100;

#[tokio::test]
async fn a_dropped_download_resumes_with_at_most_one_chunk_twice() {
    let cut = 2 * CHUNK_BYTES + 5_000;
    let case = case(LENGTH, vec![Act::Cut(cut as usize), Act::Serve]).await;
    let error = case.fetch().await.unwrap_err();
    assert!(matches!(error.fault(), Fault::Passing { .. }), "{error:?}");
    let stored = case.store.stored(&case.blob);
    assert!(stored >= cut - 10_000 - CHUNK_BYTES && stored % CHUNK_BYTES == 0, "{stored}");
    case.fetch().await.unwrap();
    assert_eq!(case.ranges(), [None, Some(stored)]);
    assert_eq!(case.store.read(&case.blob).unwrap(), case.bytes);
    case.fetch().await.unwrap();
    assert_eq!(case.ranges().len(), 2, "what is there is not fetched again");
}

#[tokio::test]
async fn a_server_without_ranges_is_read_from_the_start() {
    let case = case(LENGTH, vec![Act::Cut(3 * CHUNK_BYTES as usize), Act::Whole]).await;
    case.fetch().await.unwrap_err();
    case.fetch().await.unwrap();
    assert!(case.ranges()[1].is_some());
    assert_eq!(case.store.read(&case.blob).unwrap(), case.bytes);
}

#[tokio::test]
async fn wrong_bytes_are_named_and_forgotten() {
    let case = case(LENGTH, vec![Act::Flip, Act::Serve]).await;
    let fault = case.fetch().await.unwrap_err().fault();
    assert!(matches!(fault, Fault::Wrong { reason: ReasonCode::DigestMismatch, .. }), "{fault:?}");
    assert_eq!(case.store.stored(&case.blob), 0);
    case.fetch().await.unwrap();
}

#[tokio::test]
async fn a_longer_body_is_cut_off_at_the_signed_length() {
    let case = case(LENGTH, vec![Act::Longer]).await;
    let fault = case.fetch().await.unwrap_err().fault();
    assert!(matches!(fault, Fault::Wrong { reason: ReasonCode::LengthMismatch, .. }), "{fault:?}");
    assert!(!case.store.holds(&case.blob));
}

#[tokio::test]
async fn another_range_than_asked_for_is_refused() {
    let case = case(LENGTH, vec![Act::Cut(3 * CHUNK_BYTES as usize), Act::WrongRange]).await;
    case.fetch().await.unwrap_err();
    let error = case.fetch().await.unwrap_err();
    assert!(matches!(error, FetchError::Answer { .. }), "{error:?}");
    assert!(!case.store.holds(&case.blob));
}

#[tokio::test]
async fn a_busy_server_is_waited_for_as_long_as_it_asks() {
    let case = case(LENGTH, vec![Act::Refuse(503), Act::Refuse(429), Act::Refuse(404)]).await;
    for _ in 0..2 {
        let fault = case.fetch().await.unwrap_err().fault();
        assert!(matches!(fault, Fault::Passing { retry_after_ms: Some(7_000), .. }), "{fault:?}");
    }
    assert!(matches!(
        case.fetch().await.unwrap_err().fault(),
        Fault::Wrong { reason: ReasonCode::FileMissing, .. }
    ));
}

impl Case {
    async fn check(&self) -> FetchError {
        let (device, none) = ("pole-1".parse().unwrap(), RepoVersions::default());
        self.fetcher.check(&device, none, none, "").await.unwrap_err()
    }
}

#[tokio::test]
async fn an_answer_to_a_check_that_never_ends_is_cut_off() {
    let case = case(10, vec![Act::Trickle(1 << 20, Duration::ZERO)]).await;
    let error = case.check().await;
    assert!(matches!(error, FetchError::Endless { .. }), "{error:?}");
    assert_eq!((error.reason(), error.is_suspicious()), (ReasonCode::MetadataTooLarge, true));
}

/// A few bytes now and then would hold a device up for ever; silence is the same.
#[tokio::test]
async fn a_server_that_is_slower_than_any_link_is_left() {
    let drop_by_drop = Act::Trickle(1, Duration::from_millis(60));
    for act in [drop_by_drop, Act::Silent] {
        let case = case(LENGTH, vec![act]).await;
        let error = case.check().await;
        assert_eq!((error.reason(), error.is_suspicious()), (ReasonCode::SlowRetrieval, true), "{error:?}");
        let fault = case.fetch().await.unwrap_err().fault();
        assert!(matches!(fault, Fault::Passing { reason: ReasonCode::SlowRetrieval, .. }), "{fault:?}");
        assert!(!case.store.holds(&case.blob));
    }
}

/// A slow link is none of that: the least speed is a bound, not a wish.
#[tokio::test]
async fn a_slow_link_that_moves_on_is_stayed_with() {
    let enough = Act::Trickle(2048, Duration::from_millis(100));
    let case = case(64 * 1024, vec![enough]).await;
    let fault = case.fetch().await.unwrap_err().fault();
    assert!(matches!(fault, Fault::Wrong { reason: ReasonCode::LengthMismatch, .. }), "{fault:?}");
}

#[tokio::test]
async fn nothing_at_all_listens() {
    let case = case(10, vec![Act::Serve]).await;
    case.server.task.abort();
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let fetcher = Fetcher::plain(format!("http://{closed}"));
    let fault = fetcher.blob(&case.store, &case.blob, ()).await.unwrap_err().fault();
    assert!(matches!(fault, Fault::Passing { reason: ReasonCode::FetchFailed, .. }), "{fault:?}");
}

#[tokio::test]
async fn a_manifest_that_is_signed_to_be_huge_is_not_asked_for() {
    let case = case(10, vec![Act::Serve]).await;
    let huge = Blob { digest: case.blob.digest, length: MANIFEST_BYTES_MAX + 1 };
    assert!(case.fetcher.target(&case.store, "m.1.json", &huge, ()).await.is_err());
    assert!(case.ranges().is_empty());
}

#[tokio::test]
async fn what_is_held_for_a_transfer_is_let_go_once_it_is_over_or_given_up() {
    let served = case(LENGTH, vec![Act::Serve]).await;
    let (held, over) = mpsc::channel::<()>();
    served.fetcher.blob(&served.store, &served.blob, held).await.unwrap();
    assert_eq!(over.try_recv(), Err(mpsc::TryRecvError::Disconnected));

    let silent = case(LENGTH, vec![Act::Silent]).await;
    let (held, over) = mpsc::channel::<()>();
    let (fetcher, store, blob) = (silent.fetcher.clone(), silent.store.clone(), silent.blob);
    let job = tokio::spawn(async move { fetcher.blob(&store, &blob, held).await });
    while silent.ranges().is_empty() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(over.try_recv(), Err(mpsc::TryRecvError::Empty));
    job.abort();
    assert!(job.await.is_err());
    assert_eq!(over.recv_timeout(Duration::from_secs(60)), Err(mpsc::RecvTimeoutError::Disconnected));
}

#[test]
fn a_transfer_that_panics_is_not_tried_for_ever() {
    let fault = FetchError::Panicked.fault();
    assert!(matches!(fault, Fault::Wrong { reason: ReasonCode::FetchFailed, .. }), "{fault:?}");
}

/// What lies on a medium is taken without the network if it is what was signed; anything else is fetched.
#[tokio::test]
async fn a_medium_is_looked_on_first_and_believed_by_digest_alone() {
    let case = case(LENGTH, vec![Act::Serve, Act::Serve]).await;
    let medium = tempfile::tempdir().unwrap();
    let file = medium.path().join("blobs").join(case.blob.digest.to_string());
    std::fs::create_dir(medium.path().join("blobs")).unwrap();
    case.fetcher.look_on(medium.path().to_path_buf());
    let mut bent = case.bytes.clone();
    bent[7] ^= 1;
    for wrong in [bent.clone(), case.bytes[1..].to_vec(), [&case.bytes[..], b"x"].concat(), vec![]] {
        std::fs::write(&file, wrong).unwrap();
        assert!(!case.fetcher.take_from_medium(&case.store, &case.blob));
        assert!(!case.store.holds(&case.blob));
        assert_eq!(case.store.stored(&case.blob), 0, "the network does not go on from it");
    }
    // What came over the network is worth more than a file that can not be the right one.
    let mut partial = case.store.resume(&case.blob).unwrap();
    partial.write(&case.bytes[..2 * CHUNK_BYTES as usize]).unwrap();
    drop(partial);
    std::fs::write(&file, &bent[..3 * CHUNK_BYTES as usize]).unwrap();
    case.fetch().await.unwrap();
    assert_eq!(case.ranges(), [Some(2 * CHUNK_BYTES)], "what is wrong on the medium is fetched");
    assert_eq!(case.store.read(&case.blob).unwrap(), case.bytes);

    std::fs::remove_file(&file).unwrap();
    rustix::fs::mkfifoat(rustix::fs::CWD, &file, rustix::fs::Mode::RUSR).unwrap();
    let fresh = tempfile::tempdir().unwrap();
    let fresh = Store::open(fresh.path(), 0).unwrap();
    let (fetcher, blob) = (case.fetcher.clone(), case.blob);
    let taken = tokio::task::spawn_blocking(move || fetcher.take_from_medium(&fresh, &blob));
    let taken = tokio::time::timeout(Duration::from_secs(10), taken).await;
    assert!(!taken.expect("a pipe holds nobody up").unwrap());
    std::fs::remove_file(&file).unwrap();

    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), 0).unwrap();
    std::fs::write(&file, &case.bytes).unwrap();
    // A copy of the fetcher looks on the same medium.
    case.fetcher.clone().blob(&store, &case.blob, ()).await.unwrap();
    assert_eq!(store.read(&case.blob).unwrap(), case.bytes);
    assert_eq!(case.ranges().len(), 1);

    let device = "pole-1".parse().unwrap();
    assert!(Fetcher::check_on(medium.path(), &device).is_err());
    std::fs::create_dir(medium.path().join("devices")).unwrap();
    for (bytes, good) in
        [(dunlin_protocol::cbor::encode(&Check::default()), true), (b"no metadata".to_vec(), false)]
    {
        std::fs::write(medium.path().join("devices/pole-1.cbor"), bytes).unwrap();
        assert_eq!(Fetcher::check_on(medium.path(), &device).is_ok(), good);
    }
}

#[test]
fn a_check_names_its_device_unless_that_would_make_it_long() {
    let held = RepoVersions { root: 1, timestamp: 22, snapshot: 3, targets: 4, retrained: 5 };
    let path = |id: &str| check_path(&id.parse().unwrap(), held, held, "");
    assert_eq!(path("pole-1"), "/v1/check?d=pole-1&i=1.22.3.4.5&o=1.22.3.4&r=");
    assert_eq!(path(&"p".repeat(64)), "/v1/check?i=1.22.3.4.5&o=1.22.3.4&r=");
    assert_eq!(
        check_path(&"pole-1".parse().unwrap(), held, held, "0123456789abcdef"),
        "/v1/check?d=pole-1&i=1.22.3.4.5&o=1.22.3.4&r=0123456789abcdef"
    );
}

#[test]
fn only_the_rest_to_the_end_is_put_behind_what_is_held() {
    assert!(is_the_rest("bytes 4-9/10", 4, 10));
    for other in
        ["", "bytes 3-9/10", "bytes 4-8/10", "bytes 4-9/11", "bytes 4-9/*", "bytes */10", "bytes  4-9/10"]
    {
        assert!(!is_the_rest(other, 4, 10), "{other}");
    }
}
