"""Speaks the language of ppc without any of its physics: lights the DOMs near each source of light. STAND_IN says how it shall fail, and STAND_IN_LOG where it notes each call.

Angles are those of Prometheus' ppc, the direction of motion in radian; with STAND_IN=degrees those of f2000, the origin in degree.
"""
import math, os, random, sys

FAULT = os.environ.get('STAND_IN', '')
REACH = 40.  # m


def say(text): print(text, file=sys.stderr, flush=True)


def read_doms():
    folder = os.environ['PPCTABLESDIR']
    for name in ('cfg.txt', 'as.dat', 'icemodel.dat', 'icemodel.par', 'wv.dat', 'rnd.txt'):
        if not os.path.exists(f'{folder}/{name}'): say(f'Could not open file {name}'); sys.exit(1)
    rows = [line.split()[2:] for line in open(f'{folder}/geo-f2k')]
    if FAULT == 'fewer': rows = rows[:-3]
    return [(float(x), float(y), float(z) + (0 if FAULT == 'depth' else 1948.07), string, dom) for x, y, z, string, dom in rows]


def direction(theta, phi):
    if FAULT == 'degrees': theta, phi = math.radians(180 - theta), math.radians(phi + 180)
    if FAULT == 'sideways': theta, phi = phi, theta
    return math.sin(theta)*math.cos(phi), math.sin(theta)*math.sin(phi), math.cos(theta)


def hits(words, doms, efficiency):
    x, y, z, theta, phi, length, energy, start = map(float, words[4:12])
    u = direction(theta, phi)
    for X, Y, Z, string, dom in doms:
        way = X-x, Y-y, Z-z
        along = min(max(sum(a*b for a, b in zip(way, u)), 0), length)
        r = math.dist(way, [along*c for c in u])
        light = efficiency*(.3*length if length else energy)*math.exp(-r/REACH)/(1 + r)
        for _ in range(int(light + random.random())):
            yield f'HIT {string} {dom} {start + along/.2998 + r*4.52 + random.expovariate(.01):.3f} 400.5 1 1 {math.pi/2:.4f} 0.25'


def main():
    if len(sys.argv) == 1: say(f'Use: {sys.argv[0]} [device] (f2k muons)'); return
    if log := os.environ.get('STAND_IN_LOG'): print(*sys.argv[1:], file=open(log, 'a'))
    if FAULT == 'deterministic': random.seed(int(sys.argv[1]))
    doms = read_doms()
    efficiency = float(open(os.environ['PPCTABLESDIR'] + '/cfg.txt').read().splitlines()[1].split()[0])
    say(f'Loaded {len(doms)} DOMs (1x1)')
    event = 0
    for line in sys.stdin:
        words = line.split()
        event += words[0] == 'EM'
        late = event == 2
        if late and words[0] == 'TR':
            if FAULT == 'dies': say('nan in the ice'); sys.stdout.flush(); os._exit(3)
            if FAULT == 'killed': sys.stdout.flush(); os.kill(os.getpid(), 9)
            if FAULT == 'cut': print('HIT 1 1 10', end=''); return
            if FAULT == 'ends': return
            if FAULT == 'talks': print('Warning: the ice is thin')
            if FAULT == 'stranger': print(line, end=''); print('HIT 99 3 10.0 400 1 1 1 1'); continue
            if FAULT == 'letters': print(line, end=''); print('HIT 1 one 10.0 400 1 1 1 1'); continue
            if FAULT == 'nan': print(line, end=''); print('HIT 1 1 nan 400 1 1 1 1'); continue
        if FAULT == 'first' and words[0] == 'EM': print('HIT 1 1 10.0 400 1 1 1 1')
        print(line, end='')
        if words[0] == 'TR' and FAULT != 'dark':
            for hit in hits(words, doms, efficiency): print(hit)
    if FAULT == 'cuda': say('CUDA Error: out of memory')
    if FAULT == 'overflow': say('Error: data buffer overflow occurred!')


if __name__ == '__main__': main()
