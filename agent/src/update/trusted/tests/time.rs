//! What time it is, as far as a device can know.

use super::*;

#[test]
fn a_clock_that_steps_back_holds_nothing_up_and_one_far_ahead_raises_no_floor() {
    let mut world = World::new();
    let dir = tempfile::tempdir().unwrap();
    let mut trusted = world.open(dir.path());
    let at = |wall_ms| Now { mono_ms: 0, wall_ms };
    assert_eq!(
        trusted.accept(&world.check(), at(None)).unwrap().unwrap_err().reason(),
        ReasonCode::ClockUnknown
    );
    let far = at(Some(NOW_MS + 100 * 365 * 86_400_000));
    assert_eq!(
        trusted.accept(&world.check(), far).unwrap().unwrap_err().reason(),
        ReasonCode::MetadataExpired
    );
    assert_eq!(trusted.floors().wall_ms, 0, "a time at which nothing was fresh is no verified time");

    assert_eq!(take(&mut trusted, &world.check()), Ok(1));
    assert_eq!(trusted.floors().wall_ms, NOW_MS);
    world.bump(2);
    let stepped = at(Some(NOW_MS - 400 * 86_400_000));
    assert_eq!(trusted.clock_behind_ms(stepped), 400 * 86_400_000);
    trusted.accept(&world.check(), stepped).unwrap().unwrap();
    assert_eq!(trusted.floors().wall_ms, NOW_MS);
    // Files that were expired at the latest verified time stay so, whatever the clock says.
    world.bump(3);
    world.director.expires.insert("timestamp", NOW_MS - 1);
    assert_eq!(
        trusted.accept(&world.check(), stepped).unwrap().unwrap_err().reason(),
        ReasonCode::MetadataExpired
    );
}

#[test]
fn an_acknowledgement_of_this_boot_tells_the_time_within_bounds() {
    let world = World::new();
    let dir = tempfile::tempdir().unwrap();
    let mut trusted = world.open(dir.path());
    assert_eq!(take(&mut trusted, &world.check()), Ok(1));
    let boot = BootId([7; 16]);
    let header = |kind, boot, sealed_ms: u64| Header {
        v: dunlin_protocol::SCHEMA,
        kind,
        device: DEVICE.parse().unwrap(),
        boot: BootId([0; 16]),
        seq: 1,
        exp: Some(sealed_ms + ACK_LIFE_MS),
        body: Bytes(cbor::encode(&AckBody { ranges: vec![AckRange { boot, upto: 1 }] })),
    };
    let hint = |trusted: &Trusted, header: &Header| trusted.time_hint(&Acknowledged::of(header, boot)?);
    let later = NOW_MS + 400 * 86_400_000;
    assert_eq!(hint(&trusted, &header(Kind::Ack, boot, later)), Some(later));
    // One that was ahead is corrected; what is fresh is judged by the floor all the same.
    assert_eq!(hint(&trusted, &header(Kind::Ack, boot, NOW_MS - 1)), Some(NOW_MS - 1));
    let refused = [
        header(Kind::Ack, BootId([8; 16]), later),
        header(Kind::Cmd, boot, later),
        header(Kind::Ack, boot, crate::clock::WALL_MS_MIN - 1),
        header(Kind::Ack, boot, NOW_MS + dunlin_trust::floors::HINT_AHEAD_MS_MAX + 1),
        Header { exp: None, ..header(Kind::Ack, boot, later) },
        Header { body: Bytes(b"no body".to_vec()), ..header(Kind::Ack, boot, later) },
    ];
    for header in refused {
        assert_eq!(hint(&trusted, &header), None, "{header:?}");
    }
    // It is only asked of what was opened: a signature of another key does not get there.
    let seal = |signer: &dyn Signer| envelope::seal_down(&header(Kind::Ack, boot, later), signer).unwrap();
    let unknown = Now { mono_ms: 0, wall_ms: None };
    assert_eq!(trusted.open_down(&seal(&forge::key()), unknown).unwrap_err(), ReasonCode::EnvelopeSignature);
    let opened = trusted.open_down(&seal(&world.director.timestamp), unknown).unwrap();
    assert_eq!(hint(&trusted, &opened), Some(later));
    assert_eq!(trusted.floors().wall_ms, NOW_MS, "a hint is not kept");
}

#[test]
fn how_long_nothing_fresh_came_is_known_from_what_is_held() {
    let (world, dir) = (World::new(), tempfile::tempdir().unwrap());
    let mut trusted = world.open(dir.path());
    let at = |ms| Now { mono_ms: 0, wall_ms: Some(ms) };
    assert_eq!(trusted.expired_ms(at(u64::MAX)), None, "nothing is held");
    take(&mut trusted, &world.check()).unwrap();
    assert_eq!(trusted.expired_ms(at(forge::LATER_MS - 1)), None);
    assert_eq!(trusted.expired_ms(at(forge::LATER_MS + 5)), Some(5));
    assert_eq!(trusted.expired_ms(Now { mono_ms: 0, wall_ms: None }), None);
}
