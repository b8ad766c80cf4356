// Drives an endpoint with the Node client etcd3.
//
// usage: node clients.js HOST:PORT, where etcd3 can be found
const { Etcd3 } = require('etcd3');

function check(holds, what) {
  if (!holds) {
    console.error(`not as expected: ${what}`);
    process.exit(1);
  }
}

async function main() {
  const client = new Etcd3({ hosts: process.argv[2] });
  const space = client.namespace(`node/${process.pid}/`);
  await space.put('a').value('1');
  check((await space.get('a').string()) === '1', 'put and get');
  const created = await space.if('a', 'Create', '==', 0).then(space.put('a').value('2')).commit();
  check(!created.succeeded, 'a guarded create');
  const updated = await space.if('a', 'Value', '==', '1').then(space.put('a').value('2')).commit();
  check(updated.succeeded, 'a guarded update');
  const watcher = await space.watch().prefix('').create();
  const seen = new Promise((resolve) => watcher.on('put', (kv) => resolve(kv.value.toString())));
  await space.put('b').value('3');
  check((await seen) === '3', 'watch');
  await watcher.cancel();
  check((await space.getAll().keys()).length === 2, 'prefix');
  const lease = space.lease(30);
  await lease.put('leased').value('1');
  await lease.keepaliveOnce();
  check((await space.get('leased').string()) === '1', 'lease');
  await lease.revoke();
  check((await space.get('leased').string()) === null, 'revoke');
  const lock = space.lock('lock');
  await lock.acquire();
  check(await space.lock('lock').acquire().then(() => false, () => true), 'a second holder');
  await lock.release();
  const election = space.election('election', 30);
  const campaign = election.campaign('me');
  await new Promise((resolve, reject) => campaign.on('elected', resolve).on('error', reject));
  check((await election.leader()) === 'me', 'the leader');
  await campaign.resign();
  await space.delete().all();
  client.close();
  console.log('node etcd3: all as expected');
  process.exit(0);
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
