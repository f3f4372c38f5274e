#!/usr/bin/env python
"""Bring events out of IceTray: i3 files in, one .npz file of plain tables out.

Copy this one file into an IceTray environment. It needs NumPy and icecube, and nothing of genesis:

    python i3_to_genesis.py -g GCD.i3.gz -p InIceDSTPulses -o events.npz Level2_*.i3.zst

Then, where genesis is installed: genesis convert events.npz events.h5

The tables are: one row a pulse (event, string, dom, charge [pe], time [ns]), label (energy [GeV], zenith, azimuth [rad], x, y, z [m]; NaN where unknown),
kind (0 unknown, 1 cascade, 2 track), geometry (string, dom, x, y, z [m], relative efficiency), and assumptions, a list of sentences.
Times count from the neutrino's interaction; where no frame holds a tree of simulated particles, from the first pulse of each event. Where some do, events without one are dropped and counted.
"""
import argparse
import os
import sys
import tempfile

import numpy as np

IN_ICE = 60, 86  # DOM numbers above the first are IceTop's on strings up to the second; the Upgrade's strings have more modules
NEUTRINOS = ('NuE', 'NuEBar', 'NuMu', 'NuMuBar', 'NuTau', 'NuTauBar')
MUONS, TAUS = ('MuMinus', 'MuPlus'), ('TauMinus', 'TauPlus')
UNKNOWN, CASCADE, TRACK = 0, 1, 2


def name_of(particle):
    return str(particle.type).split('.')[-1]


def in_ice(string, dom):
    return string >= 1 and dom >= 1 and (dom <= IN_ICE[0] or string > IN_ICE[1])


def read_geometry(frame):
    """(n, 6) string, number, x, y, z and 1 of the modules in the ice; the last is the relative efficiency, which `calibrate` fills in."""
    modules = {}
    for key, om in frame['I3Geometry'].omgeo.items():
        if in_ice(key.string, key.om):  # the Upgrade's modules have an entry for each PMT
            modules.setdefault((key.string, key.om), []).append((om.position.x, om.position.y, om.position.z))
    rows = [key + tuple(np.mean(pmts, axis=0)) + (1.0,) for key, pmts in sorted(modules.items())]
    return np.array(rows, dtype=float).reshape(-1, 6)


def calibrate(geometry, frame):
    """Relative efficiencies of the modules, where the calibration knows them: the mean of their PMTs."""
    known = {}
    for key, c in frame['I3Calibration'].dom_cal.items():
        rde = float(c.relative_dom_eff)
        if np.isfinite(rde) and rde > 0:
            known.setdefault((key.string, key.om), []).append(rde)
    for row in geometry:
        row[5] = np.mean(known.get((int(row[0]), int(row[1])), [1.0]))


def interactions(tree, particle):
    """All neutrinos that interact, from this particle on, with what comes out: [(neutrino, daughters)]."""
    daughters = list(tree.children(particle))
    below = [found for d in daughters for found in interactions(tree, d)]
    products = [d for d in daughters if name_of(d) not in NEUTRINOS]
    if name_of(particle) in NEUTRINOS and products:  # else it is only passed on, to itself
        return [(particle, products)] + below
    return below


def interaction(tree, centre=(0.0, 0.0, 0.0)):
    """The neutrino whose products are in the ice, and these: (neutrino, products), or None.

    A neutrino may interact on its way, in the Earth: it loses energy, or becomes a tau that decays to another one. Of all that
    interact in the line of the most energetic neutrino, the one is taken whose products begin nearest to the detector.
    """
    neutrinos = sorted((p for p in tree if name_of(p) in NEUTRINOS), key=lambda p: -p.energy)
    lines = (interactions(tree, p) for p in neutrinos)
    line = next((found for found in lines if found), None)
    if line is None:
        return None

    def distance(found):
        pos = found[1][0].pos
        return np.linalg.norm(np.subtract((pos.x, pos.y, pos.z), centre))
    return min(line, key=distance)


def kind_of(daughters):
    names = [name_of(d) for d in daughters]
    if any(n in MUONS for n in names):
        return TRACK
    return UNKNOWN if any(n in TAUS for n in names) else CASCADE


def read_pulses(frame, name):
    """[(string, dom, charge, time)] of a pulse map or of a mask of one."""
    from icecube import dataclasses
    pulses = dataclasses.I3RecoPulseSeriesMap.from_frame(frame, name)
    return [(key.string, key.om, p.charge, p.time) for key, series in pulses.items() for p in series]


def pulse_maps(frame):
    return sorted(k for k in frame.keys() if 'Puls' in k)


class Export(object):
    def __init__(self, pulses, tree):
        self.pulses, self.tree = pulses, tree
        self.rows, self.labels, self.kinds, self.known = [], [], [], []
        self.counts = dict(frames=0, without_pulses=0, without_truth=0, ice_top=0, no_charge=0, pulses=0)
        self.geometry, self.calibrated, self.seen = None, False, []

    def add(self, frame):
        self.counts['frames'] += 1
        if self.pulses not in frame:
            self.counts['without_pulses'] += 1
            self.seen = pulse_maps(frame)
            return
        centre = self.geometry[:, 2:5].mean(axis=0) if self.geometry is not None else (0.0, 0.0, 0.0)
        found = interaction(frame[self.tree], centre) if self.tree in frame else None
        rows, event = [], len(self.labels)
        for string, dom, charge, time in read_pulses(frame, self.pulses):
            self.counts['pulses'] += 1
            if not in_ice(string, dom):
                self.counts['ice_top'] += 1
            elif not charge > 0 or not np.isfinite(time):
                self.counts['no_charge'] += 1
            else:
                rows.append((event, string, dom, charge, time))
        if found is None:
            self.counts['without_truth'] += 1
            zero, label, kind = min([r[4] for r in rows] or [0.0]), [np.nan]*6, UNKNOWN
        else:
            neutrino, daughters = found
            vertex = daughters[0].pos
            zero, kind = daughters[0].time, kind_of(daughters)
            label = [neutrino.energy, neutrino.dir.zenith, neutrino.dir.azimuth, vertex.x, vertex.y, vertex.z]
        self.rows += [(e, s, d, q, t - zero) for e, s, d, q, t in rows]
        self.labels.append(label)
        self.kinds.append(kind)
        self.known.append(found is not None)

    def finish(self):
        """A label is known for every event or for none: events without truth go, unless all are without."""
        if all(self.known) or not any(self.known):
            return
        number = np.cumsum(self.known) - 1
        self.rows = [(number[r[0]],) + r[1:] for r in self.rows if self.known[r[0]]]
        self.labels = [y for y, k in zip(self.labels, self.known) if k]
        self.kinds = [y for y, k in zip(self.kinds, self.known) if k]

    def assumptions(self):
        c = self.counts
        return ['pulse map: %s' % self.pulses, '%d pulses of IceTop and %d without charge or time were dropped' % (c['ice_top'], c['no_charge']),
                'a module of several PMTs stands in the middle of them',
                '%d of %d frames had no such pulse map and were dropped' % (c['without_pulses'], c['frames']),
                'energy, zenith, azimuth: of the neutrino whose products are in the ice, vertex: where they begin (%s)' % self.tree,
                'time: counts from the interaction' if any(self.known) else 'time: counts from the first pulse; no event has a tree of simulated particles',
                '%d events without a neutrino in %s %s' % (c['without_truth'], self.tree, 'were dropped' if any(self.known) else 'were kept, without labels'),
                'kind: a muon makes a track, a tau is unknown, all else a cascade']

    def write(self, path):
        """All of the file or none of it."""
        rows = np.array(self.rows, dtype=float).reshape(-1, 5)
        handle, temporary = tempfile.mkstemp(dir=os.path.dirname(os.path.abspath(path)), suffix='.tmp')
        try:
            with os.fdopen(handle, 'wb') as f:
                np.savez_compressed(f, event=rows[:, 0].astype(np.int64), string=rows[:, 1].astype(np.int32), dom=rows[:, 2].astype(np.int32), charge=rows[:, 3], time=rows[:, 4],
                                    label=np.array(self.labels, dtype=float).reshape(-1, 6), kind=np.array(self.kinds, dtype=np.uint8), geometry=self.geometry, assumptions=np.array(self.assumptions(), dtype=str))
                f.flush()
                os.fsync(f.fileno())
            os.chmod(temporary, 0o644)
            os.replace(temporary, path)
        finally:
            if os.path.exists(temporary):
                os.unlink(temporary)


def main(argv=None):
    a = argparse.ArgumentParser(description='i3 files to one .npz file that genesis reads')
    a.add_argument('files', nargs='+', help='i3 files')
    a.add_argument('-g', '--gcd', help='GCD file; not needed where the i3 files hold a geometry')
    a.add_argument('-p', '--pulses', default='InIceDSTPulses', help='pulse map, or mask of one (default InIceDSTPulses)')
    a.add_argument('-t', '--tree', default='I3MCTree', help='tree of the simulated particles (default I3MCTree)')
    a.add_argument('-s', '--stream', default='Physics', help='frames to take: Physics (default) or DAQ')
    a.add_argument('--sub-event-stream', default='InIceSplit', help='of Physics frames; "any" takes all (default InIceSplit)')
    a.add_argument('-o', '--out', required=True, help='.npz file to write')
    a = a.parse_args(argv)
    from icecube import dataio, icetray
    stop = getattr(icetray.I3Frame, a.stream, None)
    if stop is None:
        sys.exit('i3_to_genesis: no such stream: %s (Physics or DAQ)' % a.stream)
    if not a.out.endswith('.npz'):
        sys.exit('i3_to_genesis: the output must end in .npz, got %s' % a.out)
    export = Export(a.pulses, a.tree)
    for path in ([a.gcd] if a.gcd else []) + a.files:
        if not os.path.exists(path):
            sys.exit('i3_to_genesis: no file %s' % path)
        for frame in dataio.I3File(path):
            if 'I3Geometry' in frame and export.geometry is None:
                export.geometry = read_geometry(frame)
            if 'I3Calibration' in frame and export.geometry is not None and not export.calibrated:
                calibrate(export.geometry, frame)
                export.calibrated = True
            if path == a.gcd or frame.Stop != stop:
                continue
            if a.stream == 'Physics' and a.sub_event_stream != 'any' and 'I3EventHeader' in frame and frame['I3EventHeader'].sub_event_stream != a.sub_event_stream:
                continue
            export.add(frame)
    if export.geometry is None or not len(export.geometry):
        sys.exit('i3_to_genesis: no I3Geometry in these files: pass the GCD file with -g')
    if not export.labels:
        sys.exit('i3_to_genesis: no frame holds %s. Those seen: %s' % (a.pulses, ', '.join(export.seen) or 'none'))
    export.finish()
    export.write(a.out)
    for line in ['%d events, %d pulses in, %d out, written to %s' % (len(export.labels), export.counts['pulses'], len(export.rows), a.out)] + export.assumptions():
        print(line)


if __name__ == '__main__':
    main()
